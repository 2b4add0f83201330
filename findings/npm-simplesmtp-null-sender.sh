#!/usr/bin/env bash
# FINDING: npm's simplesmtp server says 250 to MAIL FROM:<> and then 503 "need MAIL command" to RCPT: no bounce gets in.
#
# Software:  simplesmtp 0.3.35 from npm, createServer; node. A line that begins with a dot keeps its stuffed dot too.
# Behaviour: the null sender is kept as an empty string, and RCPT asks whether there is a sender by asking whether the string
#            is true. Every delivery report, out-of-office answer and callout, all of which must use the null sender, is
#            refused with a permanent code, by a text that blames the client.
# Seen on 2026-11-30:
#            MAIL FROM:<> -> 250 2.1.0 Ok
#            RCPT TO:<a@example.test> -> 503 5.5.1 Error: need MAIL command
#            RSET -> 250 2.0.0 Ok
#            MAIL FROM:<s@example.test> -> 250 2.1.0 Ok
#            RCPT TO:<a@example.test> -> 250 2.1.0 Ok
# Exit:      0 as described, 1 it changed, 77 the pinned package or node is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; fi
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

command -v npm >/dev/null || skip "no node and npm"
command -v python3 >/dev/null || skip "no python3"
cd "$tmp"
npm install --prefix "$tmp" --silent --no-audit --no-fund --ignore-scripts simplesmtp@0.3.35 >/dev/null 2>&1 \
    || skip "simplesmtp 0.3.35 cannot be installed"
echo "simplesmtp 0.3.35, node $(node --version)"

port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
cat > server.js <<'EOF'
const server = require('simplesmtp').createServer({ disableDNSValidation: true, name: 'mx.example.test' });
server.listen(Number(process.argv[2]), '127.0.0.1', () => {});
EOF
node server.js "$port" > log 2>&1 & pid=$!
for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    sleep 0.1
done
cat > client.py <<'EOF'
import smtplib, sys
with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=20) as client:
    client.ehlo("client.example.test")
    for command in ("MAIL FROM:<>", "RCPT TO:<a@example.test>", "RSET",
                    "MAIL FROM:<s@example.test>", "RCPT TO:<a@example.test>"):
        code, text = client.docmd(command)
        print(f"{command} -> {code} {text.decode()}")
EOF
seen=$(python3 client.py "$port")
echo "$seen"
expected='MAIL FROM:<> -> 250 2.1.0 Ok
RCPT TO:<a@example.test> -> 503 5.5.1 Error: need MAIL command
RSET -> 250 2.0.0 Ok
MAIL FROM:<s@example.test> -> 250 2.1.0 Ok
RCPT TO:<a@example.test> -> 250 2.1.0 Ok'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: accepted sender, then no sender"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
