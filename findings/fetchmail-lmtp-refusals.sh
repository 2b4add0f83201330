#!/usr/bin/env bash
# FINDING: fetchmail --lmtp deletes a mail after a temporary refusal (451 after the data) and keeps one after a permanent (550).
#
# Software:  fetchmail 6.4.37-1 (Debian 12), set no bouncemail, set postmaster; a POP3 and an LMTP server made here.
# Behaviour: 451 after the data is "try again later"; fetchmail sends its bounce, if the mail has a sender, and deletes the
#            mail on the POP server: one with a null sender is gone without a trace. 550 at RCPT is final; fetchmail then
#            gives the mail to the postmaster, takes the 250 for that for an error ("Unexpected non-503 response to LMTP EOM")
#            and leaves the mail on the server: the postmaster gets another copy at every poll, for ever.
# Seen on 2026-11-30, a mail with Return-Path: <>, polled twice for each refusal:
#            451 after the data: DELE 1 at the first poll, nothing delivered
#            550 at RCPT: RCPT TO:<postmaster@example.test> at the first poll, and again at the second; no DELE
# Exit:      0 as described, 1 it changed, 77 the pinned package is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

command -v python3 >/dev/null || skip "no python3"
cd "$tmp"
apt-get download fetchmail=6.4.37-1 >/dev/null 2>&1 || skip "fetchmail 6.4.37-1 is no longer on the mirror"
dpkg -x ./*.deb root
root/usr/bin/fetchmail --version > version 2>&1 || skip "fetchmail does not start here: $(head -1 version)"
grep -m1 -o 'fetchmail release [0-9.]*' version

cat > servers.py <<'EOF'
"""POP3 with one mail, and LMTP that refuses u@example.test; logs what matters."""
import socket, sys, threading
refusal = sys.argv[1]
MAIL = b"Return-Path: <>\r\nFrom: s@example.test\r\nTo: u@example.test\r\nSubject: test\r\n\r\nhello\r\n"
gone = False
def log(text):
    print(text, flush=True)
def pop(f):
    global gone
    f.write(b"+OK\r\n")
    while word := f.readline().split():
        command = word[0].upper()
        if command == b"CAPA": f.write(b"+OK\r\nUSER\r\n.\r\n")
        elif command == b"STAT": f.write(b"+OK 0 0\r\n" if gone else b"+OK 1 %d\r\n" % len(MAIL))
        elif command == b"LIST": f.write(b"+OK 1 %d\r\n" % len(MAIL))
        elif command == b"RETR": f.write(b"+OK\r\n" + MAIL + b".\r\n")
        elif command == b"DELE": gone = True; log("DELE"); f.write(b"+OK\r\n")
        elif command in (b"USER", b"PASS", b"QUIT"): f.write(b"+OK\r\n")
        else: f.write(b"-ERR\r\n")
def lmtp(f):
    f.write(b"220 test\r\n")
    while line := f.readline().strip():
        answer = b"250 ok"
        if line.startswith(b"RCPT") and b"<u@" in line and refusal == "550":
            answer = b"550 5.1.1 no such user"
        elif line.startswith(b"RCPT") and refusal == "550":
            log(line.decode())
        elif line == b"DATA":
            f.write(b"354 go\r\n")
            while f.readline() != b".\r\n":
                pass
            answer = b"451 4.3.0 later" if refusal == "451" else b"250 stored"
        f.write(answer + b"\r\n")
def serve(listener, talk):
    while True:
        with listener.accept()[0] as s, s.makefile("rwb", buffering=0) as f:
            talk(f)
listeners = [socket.create_server(("127.0.0.1", 0)) for _ in "ab"]
for listener, talk in zip(listeners, (pop, lmtp)):
    threading.Thread(target=serve, args=(listener, talk)).start()
with open(sys.argv[2], "w") as out:
    print(*(listener.getsockname()[1] for listener in listeners), file=out)
EOF
poll_twice() {
    python3 servers.py "$1" "ports$1" >> "wire$1" & pids+=($!)
    for _ in $(seq 100); do [ -s "ports$1" ] && break; sleep 0.1; done
    read -r pop lmtp < "ports$1"
    (umask 077; cat > rc <<EOF
set no bouncemail
set postmaster "postmaster@example.test"
poll 127.0.0.1 port $pop protocol pop3 user "u" password "x" is "u" here smtphost "127.0.0.1/$lmtp" lmtp
  smtpname "u@example.test" sslproto ""
EOF
    )
    for poll in 1 2; do
        echo "poll $poll" >> "wire$1"
        HOME=$tmp timeout 30 root/usr/bin/fetchmail --all -f rc -i ids --pidfile "$tmp/fetchmail.pid" > "log$1-$poll" 2>&1 || true
    done
    echo "refusal $1:"; cat "wire$1"
}
poll_twice 451 > seen
poll_twice 550 >> seen
seen=$(cat seen)
echo "$seen"
expected='refusal 451:
poll 1
DELE
poll 2
refusal 550:
poll 1
RCPT TO:<postmaster@example.test>
poll 2
RCPT TO:<postmaster@example.test>'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: the temporary refusal deletes, the permanent one is tried for ever"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
