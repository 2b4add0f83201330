#!/usr/bin/env bash
# FINDING: salmon-mail's LMTP server answers 250 to a mail whose handler raised an exception, and to one that no handler wants.
#
# Software:  salmon-mail 3.3.0 from PyPI, salmon.server.LMTPReceiver, router as it comes (UNDELIVERABLE_QUEUE is None).
# Behaviour: LMTP exists so that each recipient's delivery can fail by itself and the sender keeps that mail. Here a handler's
#            exception is caught and logged, a recipient without a route is logged at DEBUG only, and the reply is 250 for both
#            as for the one that was handled: the sender deletes its copy and the mail is nowhere. Only SMTPError becomes a
#            reply. A handler that fails because its database is away loses all mail of that time.
# Seen on 2026-11-30 (one mail to three recipients):
#            good@example.test: 250 2.0.0 Ok
#            raises@example.test: 250 2.0.0 Ok
#            unrouted@example.test: 250 2.0.0 Ok
#            handled: good
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
python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --target "$tmp/site" salmon-mail==3.3.0 \
    'setuptools<81' || skip "salmon-mail 3.3.0 cannot be installed"
export PYTHONPATH=$tmp/site:$tmp PYTHONWARNINGS=ignore
echo "salmon-mail 3.3.0, $(python3 --version)"

cat > handlers.py <<'EOF'
from salmon.routing import route, stateless

@route("good@(host)", host=".+")
@stateless
def GOOD(message, host=None):
    print("handled: good", flush=True)

@route("raises@(host)", host=".+")
@stateless
def RAISES(message, host=None):
    raise RuntimeError("the database is away")
EOF
cat > server.py <<'EOF'
import sys
from salmon.routing import Router
from salmon.server import LMTPReceiver
Router.load(["handlers"])
receiver = LMTPReceiver("127.0.0.1", 0)
address = receiver.socket.getsockname() if hasattr(receiver.socket, "getsockname") else None
with open(sys.argv[1], "w") as port:
    print(address[1], file=port)
receiver.start()
EOF
python3 server.py port > handled 2> log & pid=$!
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done

cat > client.py <<'EOF'
import socket, sys
users = ("good", "raises", "unrouted")
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) as s, s.makefile("rb") as f:
    def reply():
        while (line := f.readline().decode().rstrip())[3:4] == "-":
            pass
        return line
    reply()
    for command in ("LHLO client.example.test", "MAIL FROM:<s@example.test>",
                    *(f"RCPT TO:<{user}@example.test>" for user in users), "DATA"):
        s.sendall(command.encode() + b"\r\n")
        reply()
    s.sendall(b"From: s@example.test\r\nSubject: test\r\n\r\nhello\r\n.\r\n")
    for user in users:
        print(f"{user}@example.test: {reply()}")
EOF
seen=$(python3 client.py "$(cat port)"; cat handled)
echo "$seen"
expected='good@example.test: 250 2.0.0 Ok
raises@example.test: 250 2.0.0 Ok
unrouted@example.test: 250 2.0.0 Ok
handled: good'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: 250 for two mails that nobody has"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
