#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Installs what the end-to-end tests need on Debian 12 and 13: Postfix, Cyrus, Dovecot, Perdition and mbsync side by
# side, and aiosmtpd; Ansible, from PyPI; Exim, Sendmail and OpenSMTPD, which deliver through the proxy, too;
# HAProxy, beside which the bench measures; a terminal and a browser, in which tests look at what is shown; Debian's own
# versions of the Python packages for the test run with the system's Python; and what tests/packaging builds the Debian
# package with, and a small Debian of the same release that it boots.
#
#   sudo tests/e2e/install.sh
#
# May be run again at any time: it returns at once when everything is there. No service is started, neither now nor
# by a later step of this script. dovecot-imapd conflicts with cyrus-imapd by name only, so its two programs are unpacked
# beside the system (see E2E_STATE) instead of being installed; so are the other MTAs, which conflict with Postfix.
set -eu

E2E_STATE=${LMTP_PROXY_E2E_STATE:-/var/lib/lmtp-proxy-e2e}
POLICY=/usr/sbin/policy-rc.d
SAVED=$POLICY.lmtp-proxy-e2e-saved

SERVERS="postfix cyrus-imapd dovecot-core dovecot-lmtpd perdition isync haproxy sasl2-bin libsasl2-modules libsasl2-modules-db python3-aiosmtpd"
TOOLS="ca-certificates curl git iproute2 make procps"
SHOWN="tmux chromium fonts-dejavu-core"
# Unpacked, and what they are linked with or made ready by.
MTAS="exim4-daemon-light sendmail-bin sendmail-cf opensmtpd"
FOR_MTAS="libidn12 libnsl2 libpcre2-8-0 libwrap0 m4 util-linux"
RELEASE=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
case $RELEASE in
    bookworm) FOR_MTAS="$FOR_MTAS libdb5.3 libevent-2.1-7 libgnutls-dane0 libldap-2.5-0" ;;
    *) FOR_MTAS="$FOR_MTAS libdb5.3t64 libevent-2.1-7t64 libgnutls-dane0t64 libldap2" ;;
esac
PYTHON="python3-gevent python3-daemon python3-yaml python3-setproctitle python3-prometheus-client python3-idna python3-rich python3-venv python3-pytest python3-pytest-timeout python3-pytest-xdist python3-hypothesis"
PACKAGING="build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools lintian systemd man-db debootstrap systemd-container"
# From PyPI, in an environment of its own.
ANSIBLE="ansible-core==2.19.*"
# A root of its own, with what the package needs, that tests/packaging boots.
BOOTED="systemd systemd-sysv dbus adduser procps python3 python3-daemon python3-gevent python3-idna python3-prometheus-client python3-setproctitle python3-yaml"

die() {
    echo "tests/e2e/install.sh: $*" >&2
    exit 1
}

installed_version() {
    dpkg-query -W -f '${db:Status-Abbrev} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^ii *//p'
}

missing_packages() {
    for package in $SERVERS $TOOLS $SHOWN $FOR_MTAS $PYTHON $PACKAGING; do
        [ -n "$(installed_version "$package")" ] || printf '%s ' "$package"
    done
}

# Dovecot's programs refuse to work with a master of another version: the unpacked ones must be of the installed version.
imapd_is_unpacked() {
    [ -x "$E2E_STATE/dovecot-imapd/usr/lib/dovecot/imap" ] &&
        [ "$(cat "$E2E_STATE/dovecot-imapd.version" 2>/dev/null)" = "$(installed_version dovecot-core)" ]
}

# A new list of them is unpacked anew; new versions are not looked for, as they need not fit anything here.
mtas_are_unpacked() {
    [ -x "$E2E_STATE/mtas/usr/sbin/exim4" ] && [ "$(cat "$E2E_STATE/mtas.packages" 2>/dev/null)" = "$RELEASE $MTAS" ]
}

ansible_is_there() {
    [ "$(cat "$E2E_STATE/ansible.packages" 2>/dev/null)" = "$ANSIBLE" ]
}

# Made, or known to be impossible here: a machine without the right to mount or to make devices.
root_is_made() {
    [ "$(cat "$E2E_STATE/booted.packages" 2>/dev/null)" = "$RELEASE $BOOTED" ]
}

# Those of the release before this one or after it; made here, as a test has less time.
other_stores_are_made() {
    [ -e "$E2E_STATE/booted.cannot" ] || ls "$E2E_STATE"/roots/stores-*.made >/dev/null 2>&1
}

everything_is_there() {
    [ -z "$(missing_packages)" ] && imapd_is_unpacked && mtas_are_unpacked && ansible_is_there &&
        root_is_made && other_stores_are_made
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@"
}

restore_policy() {
    if [ -e "$SAVED" ]; then
        mv -f "$SAVED" "$POLICY"
    elif [ -e "$E2E_STATE/policy-is-ours" ]; then
        rm -f "$POLICY"
    fi
    rm -f "$E2E_STATE/policy-is-ours"
}

# While this policy is in place no package may start its service.
forbid_starting() {
    restore_policy # of a run that was killed
    [ ! -e "$POLICY" ] || mv "$POLICY" "$SAVED"
    : >"$E2E_STATE/policy-is-ours"
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}

# $* = packages. The lists are fetched only when what is there does not do.
install_packages() {
    apt_get install -y --no-install-recommends "$@" && return
    apt_get update
    apt_get install -y --no-install-recommends "$@"
}

# Postfix asks its questions only at its first installation: keep it off the network should somebody start it.
answer_postfix_questions() {
    [ -z "$(installed_version postfix)" ] || return 0
    echo "postfix postfix/main_mailer_type select Local only" | debconf-set-selections
    echo "postfix postfix/mailname string localhost" | debconf-set-selections
}

make_work() {
    work=$(mktemp -d)
    chmod 755 "$work"
    chown _apt "$work" 2>/dev/null || true # the user that apt downloads as
}

unpack_imapd() {
    make_work
    if ! (cd "$work" && apt_get download "dovecot-imapd=$(installed_version dovecot-core)"); then
        # the installed Dovecot is older than the archive's: bring it up to date, then both are the same
        apt_get update
        apt_get install -y --no-install-recommends dovecot-core dovecot-lmtpd
        (cd "$work" && apt_get download "dovecot-imapd=$(installed_version dovecot-core)")
    fi
    rm -rf "$E2E_STATE/dovecot-imapd" "$E2E_STATE/dovecot-imapd.version"
    dpkg -x "$work"/dovecot-imapd_*.deb "$E2E_STATE/dovecot-imapd"
    installed_version dovecot-core >"$E2E_STATE/dovecot-imapd.version"
    rm -rf "$work"
}

unpack_mtas() {
    make_work
    # shellcheck disable=SC2086 # a list of words
    (cd "$work" && apt_get download $MTAS) || {
        apt_get update
        (cd "$work" && apt_get download $MTAS)
    }
    rm -rf "$E2E_STATE/mtas" "$E2E_STATE/mtas.packages"
    for package in "$work"/*.deb; do
        dpkg -x "$package" "$E2E_STATE/mtas"
    done
    echo "$RELEASE $MTAS" >"$E2E_STATE/mtas.packages"
    rm -rf "$work"
}

install_ansible() {
    rm -rf "$E2E_STATE/ansible" "$E2E_STATE/ansible.packages"
    /usr/bin/python3 -m venv "$E2E_STATE/ansible"
    "$E2E_STATE/ansible/bin/python" -m pip install -q --disable-pip-version-check "$ANSIBLE"
    echo "$ANSIBLE" >"$E2E_STATE/ansible.packages"
}

# Where it cannot be made the tests that boot it are skipped, and say so.
make_root() {
    rm -f "$E2E_STATE/booted.cannot"
    # shellcheck disable=SC2086 # a list of words
    if ! tests/trixie/root.sh make "$RELEASE" "$E2E_STATE/booted" $BOOTED 2>"$E2E_STATE/booted.said"; then
        cat "$E2E_STATE/booted.said" >&2
        echo "tests/e2e/install.sh: the tests that boot a Debian will be skipped" >&2
        tail -n 1 "$E2E_STATE/booted.said" >"$E2E_STATE/booted.cannot"
    fi
    rm -f "$E2E_STATE/booted.said"
    echo "$RELEASE $BOOTED" >"$E2E_STATE/booted.packages"
}

command -v apt-get >/dev/null 2>&1 && command -v dpkg-query >/dev/null 2>&1 ||
    die "needs Debian's apt-get and dpkg; on other systems the end-to-end tests cannot be run"

if everything_is_there; then
    echo "tests/e2e/install.sh: everything is there"
    exit 0
fi

[ "$(id -u)" = 0 ] || die "must be run as root: sudo tests/e2e/install.sh"
cd "$(dirname "$(readlink -f "$0")")/../.."

mkdir -p "$E2E_STATE"
chmod 755 "$E2E_STATE"
exec 9>"$E2E_STATE/lock"
flock 9

trap restore_policy EXIT
trap 'exit 1' HUP INT TERM
forbid_starting
answer_postfix_questions
missing=$(missing_packages)
# shellcheck disable=SC2086 # a list of words
[ -z "$missing" ] || install_packages $missing
imapd_is_unpacked || unpack_imapd
mtas_are_unpacked || unpack_mtas
ansible_is_there || install_ansible
root_is_made || make_root
other_stores_are_made || PYTHONDONTWRITEBYTECODE=1 LMTP_PROXY_E2E_STATE=$E2E_STATE /usr/bin/python3 -c \
    'from tests.e2e.machine import other_release; print(other_release())'
everything_is_there || die "something is still missing: $(missing_packages)"
echo "tests/e2e/install.sh: done"
