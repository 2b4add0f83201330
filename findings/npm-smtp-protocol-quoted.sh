#!/usr/bin/env bash
# FINDING: npm's smtp-protocol server takes RCPT TO:<"mary ann"@example.test> with 250 and hands over the recipient: "mary
#
# Software:  smtp-protocol 2.4.7 from npm, createServer; node.
# Behaviour: RFC 5321 lets a quoted local part hold blanks. The server cuts the argument at the first blank and takes the rest
#            for a parameter: the reply is 250, the handler gets an address without domain and with half a pair of quotes, and
#            that is what the mail is filed under. NOOP, which no server may refuse, is 502.
# Seen on 2026-11-30:
#            RCPT TO:<"mary ann"@example.test> -> 250
#            NOOP -> 502
#            recipients ["\"mary"]
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
npm install --prefix "$tmp" --silent --no-audit --no-fund --ignore-scripts smtp-protocol@2.4.7 >/dev/null 2>&1 \
    || skip "smtp-protocol 2.4.7 cannot be installed"
echo "smtp-protocol 2.4.7, node $(node --version)"

port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
cat > server.js <<'EOF'
require('smtp-protocol').createServer('mx.example.test', (request) => {
    request.on('to', (to, ack) => ack.accept());
    request.on('message', (stream, ack) => {
        console.log(`recipients ${JSON.stringify(request.to)}`);
        stream.resume();
        ack.accept();
    });
}).listen(Number(process.argv[2]), '127.0.0.1');
EOF
node server.js "$port" > handled 2> log & pid=$!
for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    sleep 0.1
done
cat > client.py <<'EOF'
import smtplib, sys
with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=20) as client:
    client.ehlo("client.example.test")
    client.docmd("MAIL FROM:<s@example.test>")
    for command in ('RCPT TO:<"mary ann"@example.test>', "NOOP"):
        print(command, "->", client.docmd(command)[0])
    client.data("Subject: test\r\n\r\nhello\r\n")
EOF
python3 client.py "$port" > wire
for _ in $(seq 50); do [ -s handled ] && break; sleep 0.1; done
seen=$(cat wire handled)
echo "$seen"
expected='RCPT TO:<"mary ann"@example.test> -> 250
NOOP -> 502
recipients ["\"mary"]'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: accepted for somebody else"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
