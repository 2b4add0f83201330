#!/usr/bin/env bash
# FINDING: npm's emailjs-smtp-client in LMTP mode calls ondone(true) when every recipient was refused after the data.
#
# Software:  emailjs-smtp-client 2.0.1 from npm, lmtp: true; node; a server made here.
# Behaviour: ondone(success) is the only public word on a message. By SMTP it is false after a refusal; by LMTP it is the
#            constant true. Who was refused stands in _envelope.rcptFailed, a private field, which by then mixes those refused
#            at RCPT, whom onready has named, with those refused after the data. nodemailer 10.6.1 resolves likewise.
# Seen on 2026-11-30 (three recipients, replies 452, 452, 550; by SMTP one reply 452):
#            lmtp: done true, rcptFailed a@example.test b@example.test c@example.test
#            smtp: done false, rcptFailed
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
npm install --prefix "$tmp" --silent --no-audit --no-fund --ignore-scripts emailjs-smtp-client@2.0.1 >/dev/null 2>&1 \
    || skip "emailjs-smtp-client 2.0.1 cannot be installed"
echo "emailjs-smtp-client 2.0.1, node $(node --version)"

cat > server.py <<'EOF'
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1], "w") as out:
    print(listener.getsockname()[1], file=out)
while True:
    with listener.accept()[0] as s, s.makefile("rwb", buffering=0) as f:
        f.write(b"220 test\r\n")
        lmtp = False
        while line := f.readline().strip():
            lmtp = lmtp or line.startswith(b"LHLO")
            if line == b"DATA":
                f.write(b"354 go\r\n")
                while f.readline() not in (b".\r\n", b""):
                    pass
                f.write(b"452 4.2.2 full\r\n" + (b"452 4.2.2 full\r\n550 5.1.1 gone\r\n" if lmtp else b""))
            else:
                f.write(b"250 ok\r\n")
EOF
python3 server.py port & pid=$!
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done

cat > client.js <<'EOF'
const module_ = require('emailjs-smtp-client');
const SmtpClient = module_.default || module_;
const protocol = process.argv[3];
const client = new SmtpClient('127.0.0.1', Number(process.argv[2]),
    { useSecureTransport: false, lmtp: protocol === 'lmtp', name: 'client.example.test', logLevel: 0 });
const to = ['a', 'b', 'c'].map(user => `${user}@example.test`);
client.onidle = () => {
    client.onidle = () => {};
    client.useEnvelope({ from: 's@example.test', to });
};
client.onready = () => {
    client.send('Subject: test\r\n\r\nhello\r\n');
    client.end();
};
client.ondone = success => {
    console.log([`${protocol}: done ${success}, rcptFailed`, ...client._envelope.rcptFailed].join(' '));
    process.exit();
};
client.onerror = error => { console.log(`${protocol}: error ${error.message}`); process.exit(1); };
client.connect();
EOF
seen=$(for protocol in lmtp smtp; do timeout 30 node client.js "$(cat port)" "$protocol" 2>/dev/null || true; done)
echo "$seen"
expected='lmtp: done true, rcptFailed a@example.test b@example.test c@example.test
smtp: done false, rcptFailed'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: done, and nobody has the mail"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
