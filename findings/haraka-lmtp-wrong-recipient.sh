#!/usr/bin/env bash
# FINDING: Haraka's queue/lmtp books a 452 for the second recipient on the first: the first gets the mail twice, the second never.
#
# Software:  Haraka 3.3.4 from npm, plugin queue/lmtp, outbound as it comes (always_split off); node 20.
# Behaviour: replies after the data are matched to recipients by joining the texts of a run of replies: after 250, 452, 250 the
#            log blames a@ with the text of both, "delivered" counts two, and the retry 64 s later has a@ as its only
#            recipient. Nothing is ever sent to b@ again, and no bounce either. One recipient a mail (always_split) avoids it.
# Seen on 2026-11-30 (recipients a, b, c; LMTP replies 250 2.0.0 stored a, 452 4.2.2 full b, 250 2.0.0 stored c):
#            recipient <a@example.test> deferred: 452 4.2.2 stored a full b
#            delivered ... response="stored c" ... rcpts=2/1/0
#            Some recipients temp failed: <a@example.test>
# Exit:      0 as described, 1 it changed, 77 the pinned package or node is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

command -v npm >/dev/null || skip "no node and npm"
command -v python3 >/dev/null || skip "no python3"
cd "$tmp"
npm install --prefix "$tmp" --silent --no-audit --no-fund --ignore-scripts Haraka@3.3.4 >/dev/null 2>&1 \
    || skip "Haraka 3.3.4 cannot be installed"
echo "Haraka 3.3.4, node $(node --version)"

cat > server.py <<'EOF'
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1], "w") as out:
    print(listener.getsockname()[1], file=out)
while True:
    with listener.accept()[0] as s, s.makefile("rwb", buffering=0) as f:
        f.write(b"220 test\r\n")
        while line := f.readline().strip():
            if line == b"DATA":
                f.write(b"354 go\r\n")
                while f.readline() not in (b".\r\n", b""):
                    pass
                f.write(b"250 2.0.0 stored a\r\n452 4.2.2 full b\r\n250 2.0.0 stored c\r\n")
            else:
                f.write(b"250 ok\r\n")
EOF
python3 server.py lmtp-port & pids+=($!)
for _ in $(seq 100); do [ -s lmtp-port ] && break; sleep 0.1; done

smtp_port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
node node_modules/Haraka/bin/haraka -i haraka >/dev/null 2>&1
mkdir -p haraka/plugins haraka/queue
echo "listen=127.0.0.1:$smtp_port" > haraka/config/smtp.ini
printf '[main]\nhost=127.0.0.1\nport=%s\n' "$(cat lmtp-port)" > haraka/config/lmtp.ini
printf 'accept_all\nqueue/lmtp\n' > haraka/config/plugins
echo 'mx.example.test' > haraka/config/me
echo 'exports.hook_rcpt = (next) => next(OK)' > haraka/plugins/accept_all.js
node node_modules/Haraka/bin/haraka -c haraka > log 2>&1 & pids+=($!)

python3 - "$smtp_port" <<'EOF' || { cat log; exit 1; }
import smtplib, sys, time
for attempt in range(100):
    try:
        with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=20) as client:
            client.sendmail("s@example.test", [f"{user}@example.test" for user in "abc"],
                            "From: s@example.test\r\nSubject: test\r\n\r\nhello\r\n")
        break
    except ConnectionRefusedError:
        time.sleep(0.2)
EOF
for _ in $(seq 100); do grep -q 'temp failed' log && break; sleep 0.1; done
wanted='recipient <.* deferred: .*|response="stored.*"|rcpts=[0-9]/[0-9]/[0-9]$|Some recipients temp failed: .*'
seen=$(grep -oE "$wanted" log | LC_ALL=C sort -u)
echo "$seen"
expected='Some recipients temp failed: <a@example.test>
rcpts=2/1/0
recipient <a@example.test> deferred: 452 4.2.2 stored a full b
response="stored c"'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: a is tried again, b is forgotten"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
