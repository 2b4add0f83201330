#!/usr/bin/env bash
# FINDING: the mail queues of zope.sendmail and repoze.sendmail lose a recipient who was refused with 450 while others were taken.
#
# Software:  zope.sendmail 7.3 and repoze.sendmail 4.5 from PyPI, their queue processors (zope-sendmail, qp).
# Behaviour: both keep a Maildir as queue so that a mail outlives a refusal; a 451 to MAIL does leave it there. Of three
#            recipients one gets 450 at RCPT (greylisting, say): the other two have the mail, smtplib hands the third back as
#            the result of sendmail(), which neither looks at. The mail leaves the queue, the status is 0, nothing is logged.
#            When the only recipient gets 450, repoze.sendmail keeps the mail, but zope.sendmail takes it for final: it
#            renames it to .rejected-*, which it never looks at again.
# Seen on 2026-11-30:
#            zope.sendmail, 450 for b of a b c: exit 0, 0 mails left, 0 rejected
#            zope.sendmail, 450 for b of b: exit 0, 0 mails left, 1 rejected
#            repoze.sendmail, 450 for b of a b c: exit 0, 0 mails left, 0 rejected
#            repoze.sendmail, 450 for b of b: exit 0, 1 mails left, 0 rejected
# Exit:      0 as described, 1 it changed, 77 the pinned packages or Python 3 with pip are not to be had.
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
python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --target "$tmp/site" \
    zope.sendmail==7.3 repoze.sendmail==4.5 || skip "zope.sendmail 7.3 and repoze.sendmail 4.5 cannot be installed"
export PYTHONPATH=$tmp/site PYTHONWARNINGS=ignore
echo "zope.sendmail 7.3, repoze.sendmail 4.5, $(python3 --version)"

cat > server.py <<'EOF'
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1], "w") as out:
    print(listener.getsockname()[1], file=out)
while True:
    with listener.accept()[0] as s, s.makefile("rwb", buffering=0) as f:
        f.write(b"220 test\r\n")
        while line := f.readline().strip():
            if line.lower() == b"data":
                f.write(b"354 go\r\n")
                while f.readline() not in (b".\r\n", b""):
                    pass
            f.write(b"450 4.2.0 later\r\n" if b"TO:<b@" in line else b"250 ok\r\n")
EOF
python3 server.py port & pid=$!
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done

cat > enqueue.py <<'EOF'
import email, importlib, sys
import transaction
package, queue, *recipients = sys.argv[1:]
importlib.import_module(f"{package}.maildir").Maildir(queue, True)
text = "From: s@example.test\nSubject: test\nMessage-ID: <1@example.test>\n\nhello\n"
delivery = importlib.import_module(f"{package}.delivery").QueuedMailDelivery(queue)
delivery.send("s@example.test", recipients, text if package == "zope.sendmail" else email.message_from_string(text))
transaction.commit()
EOF
try() {
    local package=$1 program=$2 status=0
    shift 2
    rm -rf queue
    python3 enqueue.py "$package" queue "${@/%/@example.test}" 2> enqueue.log || { cat enqueue.log >&2; return; }
    python3 "site/bin/$program" --hostname 127.0.0.1 --port "$(cat port)" queue > log 2>&1 || status=$?
    echo "$package, 450 for b of $*: exit $status, $(find queue/new queue/cur -type f ! -name '.*' | wc -l) mails left," \
        "$(find queue -name '.rejected-*' | wc -l) rejected"
}
seen=$(
    try zope.sendmail zope-sendmail a b c
    try zope.sendmail zope-sendmail b
    try repoze.sendmail qp a b c
    try repoze.sendmail qp b
)
echo "$seen"
expected='zope.sendmail, 450 for b of a b c: exit 0, 0 mails left, 0 rejected
zope.sendmail, 450 for b of b: exit 0, 0 mails left, 1 rejected
repoze.sendmail, 450 for b of a b c: exit 0, 0 mails left, 0 rejected
repoze.sendmail, 450 for b of b: exit 0, 1 mails left, 0 rejected'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: the deferred recipient is forgotten"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
