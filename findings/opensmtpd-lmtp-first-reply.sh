#!/usr/bin/env bash
# FINDING: OpenSMTPD's LMTP client gives every recipient the first recipient's reply code: 250, 452, 250 is three times sent.
#
# Software:  smtp(1) of Debian 12's opensmtpd 6.8.0p2-4+b4; it shares its client code with the daemon's relay to lmtp://.
# Behaviour: the replies after the data are gathered in one buffer that is not emptied between recipients. The code of the
#            first reply stays in front, and the text grows. A recipient whose mailbox is full is logged as delivered, and one
#            whose mail was stored as failed, as the first one fared. (Replies that arrive in one segment confuse it further;
#            here each goes out 0.3 s after the one before.)
# Seen on 2026-11-30:
#            replies 250 one, 452 two, 250 three
#            a@example.test: EOM: 250 2.0.0 one
#            b@example.test: EOM: 250 2.0.0 one two
#            c@example.test: EOM: 250 2.0.0 one two three
#            exit 0
#            replies 452 one, 250 two, 550 three
#            a@example.test: EOM: 452 4.2.2 one
#            b@example.test: EOM: 452 4.2.2 one two
#            c@example.test: EOM: 452 4.2.2 one two three
#            exit 0
# Exit:      0 as described, 1 it changed, 77 the pinned package is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; fi
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

command -v python3 >/dev/null || skip "no python3"
cd "$tmp"
apt-get download opensmtpd=6.8.0p2-4+b4 >/dev/null 2>&1 || skip "opensmtpd 6.8.0p2-4+b4 is no longer on the mirror"
apt-get download libevent-2.1-7 >/dev/null 2>&1 || skip "a library of Debian 12 is not on the mirror"
for package in ./*.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$tmp/root/usr/lib/x86_64-linux-gnu
ldd root/usr/bin/smtp > libraries
if grep 'not found' libraries; then skip "smtp does not start here"; fi
echo "opensmtpd 6.8.0p2-4+b4"

# First argument: where to write the port. Each connection gets the next set of replies.
cat > server.py <<'EOF'
import socket, sys, time
SETS = ((b"250 2.0.0 one", b"452 4.2.2 two", b"250 2.0.0 three"), (b"452 4.2.2 one", b"250 2.0.0 two", b"550 5.1.1 three"))
listener = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1], "w") as out:
    print(listener.getsockname()[1], file=out)
for replies in SETS:
    with listener.accept()[0] as s, s.makefile("rwb", buffering=0) as f:
        f.write(b"220 test\r\n")
        while line := f.readline().strip():
            if line == b"DATA":
                f.write(b"354 go\r\n")
                while f.readline() not in (b".\r\n", b""):
                    pass
                for reply in replies:
                    f.write(reply + b"\r\n")
                    time.sleep(0.3)
            else:
                f.write(b"250 ok\r\n")
EOF
python3 server.py port & pid=$!
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done

send() {
    local status=0
    echo "replies $1"
    printf 'From: s@example.test\nSubject: test\n\nhello\n' | timeout 30 root/usr/bin/smtp -v -H client.example.test \
        -s "lmtp://127.0.0.1:$(cat port)" -F s@example.test a@example.test b@example.test c@example.test > log 2>&1 || status=$?
    grep EOM log || true
    echo "exit $status"
}
seen=$(send '250 one, 452 two, 250 three'; send '452 one, 250 two, 550 three')
echo "$seen"
expected='replies 250 one, 452 two, 250 three
a@example.test: EOM: 250 2.0.0 one
b@example.test: EOM: 250 2.0.0 one two
c@example.test: EOM: 250 2.0.0 one two three
exit 0
replies 452 one, 250 two, 550 three
a@example.test: EOM: 452 4.2.2 one
b@example.test: EOM: 452 4.2.2 one two
c@example.test: EOM: 452 4.2.2 one two three
exit 0'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: the first code stands for all"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
