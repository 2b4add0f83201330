#!/usr/bin/env bash
# FINDING: fakesmtpd writes an mbox without quoting "From " and with stuffed dots left in: one test mail reads back as two.
#
# Software:  FakeSMTPd 2026.7.0 from PyPI, --output-filename; read back with Python's mailbox.mbox.
# Behaviour: a body line that begins with "From " after an empty line is written as it is, where every mbox dialect has a > put
#            before it (or counts octets): readers see a second mail that begins there. A line that begins with a dot keeps the
#            second dot that SMTP adds on the wire. A test that counts mails or compares bodies fails for the tool's sake.
# Seen on 2026-11-30 (one mail whose body has the lines "From here on" and ".dot"):
#            2 mails
#            ..dot
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
python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --target "$tmp/site" fakesmtpd==2026.7.0 \
    || skip "fakesmtpd 2026.7.0 cannot be installed"
export PYTHONPATH=$tmp/site
echo "fakesmtpd 2026.7.0, $(python3 --version)"

port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
python3 site/bin/fakesmtpd --bind 127.0.0.1 --port "$port" --output-filename "$tmp/mbox" > log 2>&1 & pid=$!
for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    sleep 0.1
done
cat > probe.py <<'EOF'
import mailbox, smtplib, sys
with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=20) as client:
    client.sendmail("s@example.test", ["a@example.test"],
                    "From: s@example.test\r\nSubject: test\r\n\r\n.dot\r\n\r\nFrom here on\r\nmore\r\n")
box = mailbox.mbox(sys.argv[2], create=False)
print(len(box), "mails")
print(box[0].get_payload().splitlines()[0])
EOF
seen=$(python3 probe.py "$port" "$tmp/mbox")
echo "$seen"
expected='2 mails
..dot'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: one mail sent, two read back"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
