#!/usr/bin/env bash
# FINDING: swaks over LMTP exits 0 although two of three recipients were refused after the data; one accepted is enough.
#
# Software:  swaks 20201014.0-2 (Debian 12); a server made here.
# Behaviour: LMTP gives a reply for each recipient after the data. swaks prints all of them, refused ones marked <**, and takes
#            the transaction for done when any of them is 2xx: a monitor or smoke test that goes by the exit status sees
#            nothing. Only when all are refused it exits 26.
# Seen on 2026-11-30:
#            replies 250 452 550: exit 0
#            replies 452 550 550: exit 26
# Exit:      0 as described, 1 it changed, 77 the pinned package or perl is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; fi
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

command -v perl >/dev/null || skip "no perl"
command -v python3 >/dev/null || skip "no python3"
cd "$tmp"
apt-get download swaks=20201014.0-2 >/dev/null 2>&1 || skip "swaks 20201014.0-2 is no longer on the mirror"
dpkg -x ./*.deb root
echo "swaks 20201014.0-2"

# The sender's local part, 250-452-550, is the replies after the data.
cat > server.py <<'EOF'
import re, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1], "w") as out:
    print(listener.getsockname()[1], file=out)
while True:
    with listener.accept()[0] as s, s.makefile("rwb", buffering=0) as f:
        f.write(b"220 test\r\n")
        replies = []
        while line := f.readline().strip():
            if m := re.search(rb"FROM:<([\d-]+)@", line):
                replies = m[1].split(b"-")
            if line == b"DATA":
                f.write(b"354 go\r\n")
                while f.readline() not in (b".\r\n", b""):
                    pass
                for code in replies:
                    f.write(code + b" reply\r\n")
            else:
                f.write(b"250 ok\r\n")
EOF
python3 server.py port & pid=$!
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done

try() {
    local status=0
    timeout 30 perl root/usr/bin/swaks --protocol LMTP --server "127.0.0.1:$(cat port)" --helo client.example.test \
        --from "${1// /-}@example.test" --to a@example.test,b@example.test,c@example.test > log 2>&1 || status=$?
    echo "replies $1: exit $status"
}
seen=$(try '250 452 550'; try '452 550 550')
echo "$seen"
expected='replies 250 452 550: exit 0
replies 452 550 550: exit 26'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: one success hides the rest"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
