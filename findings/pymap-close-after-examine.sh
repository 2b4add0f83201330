#!/usr/bin/env bash
# FINDING: pymap answers CLOSE with NO [READ-ONLY] after EXAMINE, where IMAP has CLOSE succeed and remove nothing.
#
# Software:  pymap 0.36.7 from PyPI, dict backend with its demo data; Python's imaplib as client.
# Behaviour: RFC 3501 6.4.2 names the case: no messages are removed and no error is given if the mailbox was selected by
#            EXAMINE. UNSELECT, the other way out, is unknown here. Clients that end each folder with CLOSE, as mbsync 1.4.4
#            does, report an error and exit 1 for every run over a folder that is read-only (the demo's Trash). The size in
#            BODYSTRUCTURE of a plain-text mail is the whole message's, headers included, so a client that checks it against
#            the length of BODY[1] finds the mail cut short.
# Seen on 2026-11-30:
#            EXAMINE, CLOSE: NO [READ-ONLY] Mailbox is read-only.
#            SELECT, CLOSE: OK CLOSE completed.
#            mail 1: RFC822.SIZE 192, BODYSTRUCTURE 192, BODY[1] 50
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
python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --target "$tmp/site" pymap==0.36.7 \
    'setuptools<81' || skip "pymap 0.36.7 cannot be installed"
export PYTHONPATH=$tmp/site PYTHONWARNINGS=ignore
echo "pymap 0.36.7, $(python3 --version)"

port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
python3 site/bin/pymap --host 127.0.0.1 --port "$port" --no-tls --no-service managesieve dict --demo-data > log 2>&1 & pid=$!
for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    sleep 0.1
done

cat > client.py <<'EOF'
import imaplib, re, sys
client = imaplib.IMAP4("127.0.0.1", int(sys.argv[1]))
client.login("demouser", "demopass")
for readonly, name in ((True, "EXAMINE"), (False, "SELECT")):
    client.select("INBOX", readonly=readonly)
    status, text = client.close()
    print(f"{name}, CLOSE: {status} {text[0].decode()}")
client.select("INBOX", readonly=True)
structure = client.fetch("1", "(RFC822.SIZE BODYSTRUCTURE)")[1][0].decode()
size = re.search(r"RFC822.SIZE (\d+)", structure)[1]
told = re.search(r'"7BIT" (\d+)', structure)[1]
print(f"mail 1: RFC822.SIZE {size}, BODYSTRUCTURE {told}, BODY[1] {len(client.fetch('1', '(BODY.PEEK[1])')[1][0][1])}")
EOF
seen=$(python3 client.py "$port")
echo "$seen"
expected='EXAMINE, CLOSE: NO [READ-ONLY] Mailbox is read-only.
SELECT, CLOSE: OK CLOSE completed.
mail 1: RFC822.SIZE 192, BODYSTRUCTURE 192, BODY[1] 50'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: a read-only mailbox cannot be closed"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
