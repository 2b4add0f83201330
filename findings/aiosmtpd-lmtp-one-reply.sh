#!/usr/bin/env bash
# FINDING: aiosmtpd's LMTP server sends one reply after the data, whatever the number of recipients.
#
# Software:  aiosmtpd 1.4.6 from PyPI, class aiosmtpd.lmtp.LMTP.
# Behaviour: RFC 2033's one difference from SMTP is a reply for each accepted recipient after the data. This class changes the
#            greeting and keeps the rest of SMTP: a handler that answers "250 ok" sends one line for two recipients, and the
#            client waits for the second until it times out; then it sends to that recipient again. A handler may put CRLF
#            into its answer, and so send as many lines as it likes: nothing checks their number. MAIL before LHLO is told
#            "send HELO first", a command that this server then refuses.
# Seen on 2026-11-30:
#            MAIL FROM:<s@example.test> -> 503 Error: send HELO first
#            HELO client.example.test -> 500 Error: command "HELO" not recognized
#            two recipients: 250 2.0.0 ok, and nothing more within 2 s
# Exit:      0 as described, 1 it changed, 77 the pinned package or Python 3 with pip is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; fi
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

python3 -m pip --version >/dev/null 2>&1 || skip "no python3 with pip"
cd "$tmp"
python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --target "$tmp/site" aiosmtpd==1.4.6 \
    || skip "aiosmtpd 1.4.6 cannot be installed"
export PYTHONPATH=$tmp/site
echo "aiosmtpd 1.4.6, $(python3 --version)"

cat > server.py <<'EOF'
import asyncio, sys
from aiosmtpd.lmtp import LMTP

class Handler:
    async def handle_DATA(self, server, session, envelope):
        return "250 2.0.0 ok"

async def main():
    server = await asyncio.get_running_loop().create_server(lambda: LMTP(Handler()), "127.0.0.1", 0)
    with open(sys.argv[1], "w") as out:
        print(server.sockets[0].getsockname()[1], file=out)
    await server.serve_forever()
asyncio.run(main())
EOF
python3 server.py port & pid=$!
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done

cat > client.py <<'EOF'
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10) as s, s.makefile("rb") as f:
    def reply():
        while (line := f.readline().decode().rstrip())[3:4] == "-":
            pass
        return line
    def say(command):
        s.sendall(command.encode() + b"\r\n")
        return f"{command} -> {reply()}"
    reply()
    print(say("MAIL FROM:<s@example.test>"))
    print(say("HELO client.example.test"))
    for command in ("LHLO client.example.test", "MAIL FROM:<s@example.test>", "RCPT TO:<a@example.test>",
                    "RCPT TO:<b@example.test>", "DATA"):
        say(command)
    s.sendall(b"Subject: test\r\n\r\nhello\r\n.\r\n")
    s.settimeout(2)
    got = b""
    try:
        while chunk := s.recv(4096):
            got += chunk
    except TimeoutError:
        pass
    print(f"two recipients: {', '.join(got.decode().splitlines())}")
EOF
seen=$(python3 client.py "$(cat port)")
echo "$seen"
expected='MAIL FROM:<s@example.test> -> 503 Error: send HELO first
HELO client.example.test -> 500 Error: command "HELO" not recognized
two recipients: 250 2.0.0 ok'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: one reply for two recipients"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
