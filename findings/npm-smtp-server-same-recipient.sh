#!/usr/bin/env bash
# FINDING: npm's smtp-server in LMTP mode drops replies for recipients that are equal but for letter case: 3 RCPT, 2 replies.
#
# Software:  smtp-server 3.21.6 from npm, lmtp: true; node 18 or later.
# Behaviour: RFC 2033 wants a reply for each accepted RCPT, so A, A, B is three. The server says 250 to each RCPT, keeps one
#            of those with the same address, local part in any case, and sends the replies of what it kept. For A, A, B the
#            second A is told B's verdict and B is told nothing: the client waits until its time-out, then sends all again.
#            Of "a" and "A", two mailboxes by RFC 5321, only the one named last reaches the handler.
# Seen on 2026-11-30 (the handler refuses full@ with 452):
#            RCPT a a full: 3 accepted, replies 250 a, 452 full
#            RCPT a A: 2 accepted, replies 250 A
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
npm install --prefix "$tmp" --silent --no-audit --no-fund --ignore-scripts smtp-server@3.21.6 >/dev/null 2>&1 \
    || skip "smtp-server 3.21.6 cannot be installed"
echo "smtp-server 3.21.6, node $(node --version)"

cat > server.js <<'EOF'
const { SMTPServer } = require('smtp-server');
const server = new SMTPServer({
    lmtp: true, authOptional: true, disabledCommands: ['AUTH', 'STARTTLS'], disableReverseLookup: true,
    onData(stream, session, callback) {
        stream.resume();
        stream.on('end', () => callback(null, session.envelope.rcptTo.map(({ address }) => {
            const user = address.split('@')[0];
            return user === 'full' ? Object.assign(new Error(user), { responseCode: 452 }) : user;
        })));
    },
});
server.listen(0, '127.0.0.1', () => require('fs').writeFileSync(process.argv[2], `${server.server.address().port}\n`));
EOF
node server.js port & pid=$!
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done

cat > client.py <<'EOF'
import socket, sys
def talk(users):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10) as s, s.makefile("rb") as f:
        def reply():
            while (line := f.readline().decode())[3:4] == "-":
                pass
            return line
        def say(command):
            s.sendall(command.encode() + b"\r\n")
            return reply()
        reply()
        say("LHLO client.example.test")
        say("MAIL FROM:<s@example.test>")
        accepted = sum(say(f"RCPT TO:<{user}@example.test>").startswith("250") for user in users)
        say("DATA")
        s.sendall(b"Subject: test\r\n\r\nhello\r\n.\r\n")
        s.settimeout(2)
        got = b""
        try:
            while chunk := s.recv(4096):
                got += chunk
        except TimeoutError:
            pass
        print(f"RCPT {' '.join(users)}: {accepted} accepted, replies {', '.join(got.decode().splitlines())}")
talk(["a", "a", "full"])
talk(["a", "A"])
EOF
seen=$(python3 client.py "$(cat port)")
echo "$seen"
expected='RCPT a a full: 3 accepted, replies 250 a, 452 full
RCPT a A: 2 accepted, replies 250 A'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: fewer replies than accepted recipients"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
