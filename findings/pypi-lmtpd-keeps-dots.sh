#!/usr/bin/env bash
# FINDING: PyPI's lmtpd hands its handler the dots of SMTP's dot-stuffing and the address with its angle brackets.
#
# Software:  lmtpd 6.2.0 on Python 3.7 to 3.11 (3.12 took asyncore away). salmon-mail 3.3.0 carries a copy of it.
# Behaviour: its two tests "does this begin with a dot" and "does this begin with <" compare a number with a byte string,
#            which is never equal on Python 3. So a line that begins with a dot arrives with one dot more than was sent, and
#            recipients and sender arrive as <user@domain>; both answered 250. A table looked up by plain address finds nobody.
# Seen on 2026-11-30 (the client sent the line ".profile", stuffed to "..profile" as RFC 5321 4.5.2 asks):
#            recipient <a@example.test>
#            body line ..profile
# Exit:      0 as described, 1 it changed, 77 the pinned package or such a Python is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; fi
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

python=
for candidate in python3.11 python3.10 python3.9 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -W ignore -c 'import asyncore, pip' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || skip "no Python 3 that still has asyncore, and pip"
"$python" -m pip install -q --disable-pip-version-check --root-user-action ignore --target "$tmp/site" lmtpd==6.2.0 \
    || skip "lmtpd 6.2.0 cannot be installed"
export PYTHONPATH=$tmp/site PYTHONWARNINGS=ignore
echo "lmtpd 6.2.0, $("$python" --version)"

cat > "$tmp/server.py" <<'EOF'
import asyncore, sys
import lmtpd

class Server(lmtpd.LMTPServer):
    def process_message(self, peer, sender, recipient, data):
        print("recipient", recipient.decode())
        print("body line", data.split(b"\n")[-1].decode(), flush=True)

server = Server(("127.0.0.1", 0))
with open(sys.argv[1], "w") as port:
    print(server.socket.getsockname()[1], file=port)
asyncore.loop(timeout=1)
EOF
"$python" "$tmp/server.py" "$tmp/port" > "$tmp/seen" & pid=$!
for _ in $(seq 100); do [ -s "$tmp/port" ] && break; sleep 0.1; done

"$python" - "$(cat "$tmp/port")" <<'EOF'
import smtplib, sys
# smtplib stuffs the dot, and reads the one reply that one recipient gets.
with smtplib.LMTP("127.0.0.1", int(sys.argv[1]), timeout=10) as client:
    client.sendmail("s@example.test", ["a@example.test"], "Subject: test\r\n\r\n.profile")
EOF
cat "$tmp/seen"
expected='recipient <a@example.test>
body line ..profile'
if [ "$(cat "$tmp/seen")" = "$expected" ]; then
    echo "AS DESCRIBED: the dot is still doubled, the brackets are still there"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
