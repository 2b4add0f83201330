#!/usr/bin/env bash
# FINDING: `exim4 -M ID` ends with 0 and no word for a mail that was delivered, deferred again, or is not in the queue at all.
#
# Software:  Exim 4.96, Debian 12's exim4-daemon-light 4.96-15+deb12u11. Sendmail 8.17 (`-qI ID`) was seen to do likewise.
# Behaviour: the exit status and the output of a delivery that is asked for by id are the same whatever came of it. Whoever
#            has deferred mail tried again from a script learns from the queue alone, `exim4 -bp`, whether it went.
# Seen on 2026-12-01, with a store that says 451 once and then 250:
#            deferred again -> 0, silent, 1 in the queue; delivered -> 0, silent, 0 in the queue; unknown id -> 0, silent
# Exit:      0 as described, 1 it changed, 77 no root or the pinned packages are not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill -9 "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

[ "$(id -u)" = 0 ] || skip "run as root: Exim changes to a user of its own"
command -v python3 >/dev/null || skip "no python3"
chmod 755 "$tmp"
cd "$tmp"
mkdir -p apt/lists/partial apt/cache/archives/partial root
version=4.96-15+deb12u11
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
security=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian-Security' | head -n 1)
keys='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
{
    echo "deb $keys ${mirror%/} bookworm main"
    [ -z "$security" ] || echo "deb $keys ${security%/} bookworm-security main"
} >apt/sources
: >apt/status
apt=(apt-get -qq -o "Dir::State=$tmp/apt" -o "Dir::State::status=$tmp/apt/status" -o "Dir::Cache=$tmp/apt/cache"
    -o "Dir::Etc::sourcelist=$tmp/apt/sources" -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User=root)
{ "${apt[@]}" update && "${apt[@]}" install -y --download-only --no-install-recommends base-files \
    exim4-daemon-light="$version"; } >log 2>&1 || skip "Exim $version is not to be had: $(tail -n 1 log)"
for package in apt/cache/archives/*.deb; do dpkg -x "$package" root; done
printf '%s:x:%s:%s::/:/bin/false\n' root 0 0 Debian-exim 100 101 >root/etc/passwd
printf '%s:x:%s:\n' root 0 Debian-exim 101 >root/etc/group
mkdir -p root/{dev,proc,tmp,t/spool/log}
chown -R 100:101 root/t/spool
cat >root/t/conf <<'EOF'
spool_directory = /t/spool
log_file_path = /t/spool/log/%s
primary_hostname = mx.example.test
qualify_domain = example.test
never_users =
queue_only
keep_environment =
begin routers
everybody:
  driver = accept
  transport = store
begin transports
store:
  driver = lmtp
  socket = /t/store
  user = Debian-exim
begin retry
* * F,1d,1s
EOF
cat >store.py <<'EOF'
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
verdicts = iter([b"451 4.2.1 try again later"])
while True:
    client, _ = listener.accept()
    with client, client.makefile("rwb", 0) as stream:
        stream.write(b"220 store LMTP\r\n")
        for line in stream:
            verb = line[:4].upper()
            if verb == b"DATA":
                stream.write(b"354 go on\r\n")
                while stream.readline() != b".\r\n":
                    pass
                stream.write(next(verdicts, b"250 2.0.0 saved") + b"\r\n")
            elif verb == b"QUIT":
                stream.write(b"221 bye\r\n")
                break
            else:
                stream.write(b"250 store\r\n")
EOF
inside=(unshare --mount --pid --fork --kill-child bash -c
    'mount --rbind /dev root/dev && mount -t proc proc root/proc && exec chroot root "$@"' bash)
exim() { "${inside[@]}" exim4 -C /t/conf "$@"; }
exim -bV >version 2>&1 || skip "Exim does not start here: $(head -n 1 version)"
head -n 1 version
python3 store.py root/t/store & pid=$!
for _ in $(seq 100); do [ ! -S root/t/store ] || break; sleep 0.1; done
chmod 666 root/t/store
printf 'Subject: x\n\nhello\n' | exim -odq -oi -f s@example.test -- alice@example.test
waiting() { exim -bpc; }
id=$(exim -bp | sed -n 's/^ *[0-9]*[smhd] \+[^ ]* \([^ ]*-[^ ]*-[^ ]*\) <.*/\1/p')
[ "$(waiting)" = 1 ] && [ -n "$id" ] || { echo "CHANGED: the mail is not in the queue"; exit 1; }
tried() { # $1: what it is, $2: an id
    local status=0
    exim -M "$2" >said 2>&1 || status=$?
    printf '%s -> %s, %s, %s in the queue\n' "$1" "$status" "$([ -s said ] && cat said || echo silent)" "$(waiting)"
}
seen=$(tried "deferred again" "$id"; tried delivered "$id"; tried "unknown id" "$id")
expected='deferred again -> 0, silent, 1 in the queue
delivered -> 0, silent, 0 in the queue
unknown id -> 0, silent, 0 in the queue'
echo "$seen"
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: only the queue says what came of it"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
