#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Another Debian release in a directory of this machine: its mail servers beside ours, its Python, its packaging tools.
#
#   sudo tests/trixie/root.sh make RELEASE DIR [PACKAGE]...
#   sudo tests/trixie/root.sh run [--keep] [--alone] [--bind PATH]... DIR COMMAND [ARGUMENT]...
#
# make: RELEASE (bookworm, trixie, forky, sid) by debootstrap, with its security updates and these packages. It returns at
#   once when DIR holds just that; else DIR is made anew, which takes a minute. Two may ask at once: the second waits.
#   The packages start no service. From where this machine has its own packages.
# run: COMMAND with DIR as its root, in the caller's place: the same process number, signals, exit status, network and
#   descriptors, but a clean environment (COMMAND may be `env NAME=value ...`) and / as the working directory. /proc, /sys
#   and /dev are this machine's, /run is empty; they are mounted for COMMAND and its children alone, and go with the last
#   of them. What it writes elsewhere goes to memory, and is gone then, too, but for:
#   --bind PATH  there as it is here, under the same name; for a directory with configurations, sockets and mail
#   --keep       it writes into DIR itself
#   --alone      with process numbers of its own: whatever it has started is ended with it
#
# Exit status 77: this machine cannot do it (not root, no debootstrap, no right to mount); standard error says which.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # chroot and debootstrap; whoever starts this may have /usr/bin:/bin alone
export PATH
self=$(readlink -f "$0")

die() {
    echo "tests/trixie/root.sh: $1" >&2
    exit "${2:-1}"
}

cannot() {
    die "this machine cannot $1" 77
}

usage() {
    sed -n '/^#   sudo/s/^# *//p' "$self" >&2
    exit 2
}

may_mount() {
    [ "$(id -u)" = 0 ] || cannot "make and enter another root without being root"
    unshare --mount mount -t tmpfs tmpfs /mnt 2>/dev/null || cannot "mount, which entering another root takes"
}

# --- run ---------------------------------------------------------------------------------------------------------------

run() {
    local keep= alone= binds=()
    while :; do
        case "${1-}" in
            --keep) keep=1 ;;
            --alone) alone=1 ;;
            --bind) [ -e "${2-}" ] || die "--bind: there is no ${2-}"; binds+=("$2"); shift ;;
            *) break ;;
        esac
        shift
    done
    [ $# -ge 2 ] || usage
    local root=$1
    shift
    [ -x "$root/usr/bin/env" ] || die "$root is not there: tests/trixie/root.sh make RELEASE $root"
    may_mount
    [ -n "$keep" ] || mkdir -p "$root.over"
    local namespaces=(--mount --propagation private)
    [ -z "$alone" ] || namespaces+=(--pid --fork --kill-child)
    exec unshare "${namespaces[@]}" "$self" inside "$(readlink -f "$root")" "$keep" "$alone" "${#binds[@]}" "${binds[@]}" "$@"
}

# In its namespaces already. DIR KEEP ALONE NUMBER PATH... COMMAND...
inside() {
    local root=$1 keep=$2 alone=$3 number=$4 path
    shift 4
    if [ -z "$keep" ]; then
        mount -t tmpfs -o mode=755 tmpfs "$root.over"
        mkdir "$root.over/upper" "$root.over/work" "$root.over/root"
        mount -t overlay -o "lowerdir=$root,upperdir=$root.over/upper,workdir=$root.over/work" overlay "$root.over/root"
        root=$root.over/root
    else
        mount --bind "$root" "$root" # a mount point, as the root of who makes namespaces in there has to be
    fi
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mkdir -p "$root/run/lock"
    chmod 1777 "$root/run/lock"
    while [ "$number" -gt 0 ]; do
        path=$1
        if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$root${path%/*}" && touch "$root$path"; fi
        mount --rbind "$path" "$root$path"
        number=$((number - 1))
        shift
    done
    umask 022
    set -- chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
    cd /
    if [ -z "$alone" ]; then exec "$@"; fi
    "$@" # this shell is process 1, and buries whatever loses its parent
    exit $?
}

# --- make --------------------------------------------------------------------------------------------------------------

# $1 = LABEL of this machine's own source, $2 = what it is by default
mirror() {
    local found
    found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Label: $1" 2>/dev/null | head -n 1) || true
    found=${found:-$2}
    echo "${found%/}"
}

# What the file beside DIR holds when DIR is complete. The first line changes when the way of making it does.
stamp() {
    printf 'made 1\n%s\n' "$1"
    shift
    printf '%s\n' "$@" | sort -u
}

# The processes that have DIR as their root, with or without --keep.
in_use() {
    local each at
    for each in /proc/[0-9]*; do
        at=$(readlink "$each/root") || continue
        case "$at" in "$1" | "$1/"* | "$1.over/"*) printf '%s ' "${each#/proc/}" ;; esac
    done
}

source_of() {
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n' "$1" "$2"
}

make() {
    [ $# -ge 2 ] || usage
    local release=$1 root=$2
    shift 2
    mkdir -p "$(dirname "$root")"
    root=$(readlink -f "$root")
    if [ "$(cat "$root.made" 2>/dev/null)" = "$(stamp "$release" "$@")" ]; then return; fi
    may_mount
    command -v debootstrap >/dev/null || cannot "make a root without debootstrap (apt-get install debootstrap)"
    exec 9>"$root.lock"
    flock 9
    if [ "$(cat "$root.made" 2>/dev/null)" = "$(stamp "$release" "$@")" ]; then return; fi
    local users
    users=$(in_use "$root")
    [ -z "$users" ] || die "$root is to be made anew, but is in use by process ${users% }: try again when that has ended"
    rm -rf --one-file-system "$root" "$root.made" "$root.part"
    mkdir "$root.part"
    # A machine may be one that has root, and no right to make devices.
    (mknod "$root.part/null" c 1 3 && : >"$root.part/null") 2>/dev/null || cannot "make devices, which debootstrap does"
    rm -rf "$root.part"

    echo "tests/trixie/root.sh: making $root: $release" >&2
    "$self" fill "$release" "$root.part" "$@" >"$root.log" 2>&1 9>&- || {
        tail -n 20 "$root.log" >&2
        die "$root could not be made; all of it is in $root.log"
    }
    mv "$root.part" "$root"
    stamp "$release" "$@" >"$root.made"
}

# In a process of its own: bash lets a function that is called with || go on after what fails.
fill() {
    local release=$1 root=$2 archive security script
    shift 2
    archive=$(mirror Debian http://deb.debian.org/debian)
    security=$(mirror Debian-Security http://deb.debian.org/debian-security)
    # One that is newer than this debootstrap is made as all are by now.
    script=/usr/share/debootstrap/scripts/$release
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    debootstrap --variant=minbase "$release" "$root" "$archive" "$script"
    rm -f "$root/etc/apt/sources.list"
    {
        source_of "$archive" "$release"
        case "$release" in
            bookworm | trixie) source_of "$archive" "$release-updates"; source_of "$security" "$release-security" ;;
        esac
    } >"$root/etc/apt/sources.list.d/debian.sources"
    # How to get at packages is the same as here.
    {
        echo 'Acquire::Languages "none";'
        echo 'Acquire::Retries "3";'
        apt-config dump | grep -iE '^Acquire::(https?::(Proxy|Verify)|Check-(Date|Valid-Until) )' || true
    } >"$root/etc/apt/apt.conf.d/90as-outside"
    cp --dereference /etc/resolv.conf /etc/hosts "$root/etc/"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    in_new() { "$self" run --keep --alone "$root" env DEBIAN_FRONTEND=noninteractive "${fetching[@]}" "$@"; }
    local fetching=() name
    for name in {http,https,no}_proxy; do [ -z "${!name-}" ] || fetching+=("$name=${!name}"); done
    in_new apt-get -q update
    in_new apt-get -q -y upgrade
    [ $# = 0 ] || in_new apt-get -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
    in_new apt-get clean
    rm "$root/usr/sbin/policy-rc.d"
    # It trusts whom this machine trusts.
    if [ -x "$root/usr/sbin/update-ca-certificates" ] && compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
        cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
        in_new update-ca-certificates
    fi
}

case "${1-}" in
    make | run | inside | fill) "$@" ;;
    *) usage ;;
esac
