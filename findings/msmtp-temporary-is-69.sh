#!/usr/bin/env bash
# FINDING: msmtp ends with 69 (EX_UNAVAILABLE: bounce) for every temporary reply of the server, and 75 (EX_TEMPFAIL) for none.
#
# Software:  msmtp 1.8.23-1 (Debian 12), --protocol=lmtp and smtp; a server made here.
# Behaviour: the exit status is all that a program which pipes mail to msmtp learns. 452 after the data ends as 552 does, 450
#            at RCPT is 69 while 550 there is 65, a 421 greeting is 76 (EX_PROTOCOL); a refused connection alone is 75. By LMTP
#            one 452 among three replies is 69 too: the two who have their mail and the one who may get it later bounce alike.
# Seen on 2026-11-30, lmtp and smtp alike:
#            452 after the data: exit 69
#            552 after the data: exit 69
#            250, 452, 250 after the data: exit 69 (lmtp)
#            450 at RCPT: exit 69
#            550 at RCPT: exit 65
#            421 in the greeting: exit 76
#            no server: exit 75
# Exit:      0 as described, 1 it changed, 77 the pinned package is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

command -v python3 >/dev/null || skip "no python3"
cd "$tmp"
apt-get download msmtp=1.8.23-1 >/dev/null 2>&1 || skip "msmtp 1.8.23-1 is no longer on the mirror"
apt-get download libgsasl18 libntlm0 libgssglue1 libsecret-1-0 >/dev/null 2>&1 \
    || skip "a library of Debian 12 is not on the mirror"
for package in ./*.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$tmp/root/usr/lib/x86_64-linux-gnu
root/usr/bin/msmtp --version > version 2>&1 || skip "msmtp does not start here: $(head -1 version)"
head -1 version

# The sender's address says how the server answers: rcpt450@ refuses recipients, data552-250@ is the replies after the data.
cat > server.py <<'EOF'
import re, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1], "w") as out:
    print(listener.getsockname()[1], file=out)
while True:
    with listener.accept()[0] as s, s.makefile("rwb", buffering=0) as f:
        f.write(b"421 4.3.2 later\r\n" if sys.argv[2:] else b"220 test\r\n")
        rcpt, replies = b"250 ok\r\n", [b"250 ok\r\n"]
        try:
            while line := f.readline().strip():
                if m := re.search(rb"<rcpt(\d+)@", line):
                    rcpt = m[1] + b" refused\r\n"
                if m := re.search(rb"<data([\d-]+)@", line):
                    replies = [code + b" reply\r\n" for code in m[1].split(b"-")]
                if line.startswith(b"RCPT"):
                    f.write(rcpt)
                elif line == b"DATA":
                    f.write(b"354 go\r\n")
                    while f.readline() not in (b".\r\n", b""):
                        pass
                    for reply in replies:
                        f.write(reply)
                else:
                    f.write(b"250 ok\r\n")
        except OSError:
            pass
EOF
python3 server.py port & pids+=($!)
python3 server.py port421 421 & pids+=($!)
for _ in $(seq 100); do [ -s port ] && [ -s port421 ] && break; sleep 0.1; done
python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])' > closed

try() {
    local status=0 protocol=$1 port=$2 sender=$3 text=$4
    shift 4
    printf 'From: s@example.test\nSubject: test\n\nhello\n' | timeout 20 root/usr/bin/msmtp -C /dev/null --host=127.0.0.1 \
        --port="$(cat "$port")" --protocol="$protocol" --auth=off --tls=off --from="$sender@example.test" "$@" 2>/dev/null \
        || status=$?
    echo "$protocol, $text: exit $status"
}
seen=$(
    for protocol in lmtp smtp; do
        try $protocol port data452 '452 after the data' a@example.test
        try $protocol port data552 '552 after the data' a@example.test
        try $protocol port rcpt450 '450 at RCPT' a@example.test
        try $protocol port rcpt550 '550 at RCPT' a@example.test
        try $protocol port421 s '421 in the greeting' a@example.test
        try $protocol closed s 'no server' a@example.test
    done
    try lmtp port data250-452-250 '250, 452, 250 after the data' a@example.test b@example.test c@example.test
)
echo "$seen"
expected=$(
    for protocol in lmtp smtp; do
        printf "$protocol, %s: exit %s\n" '452 after the data' 69 '552 after the data' 69 '450 at RCPT' 69 '550 at RCPT' 65 \
            '421 in the greeting' 76 'no server' 75
    done
    echo 'lmtp, 250, 452, 250 after the data: exit 69'
)
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: what is temporary is told as permanent"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
