#!/usr/bin/env bash
# FINDING: GNU mailutils' lmtpd wants a new LHLO after every RSET and every message; MAIL without it is a permanent 503.
#
# Software:  lmtpd (GNU Mailutils) 3.15, Debian 12's mailutils-mda 1:3.15-4.
# Behaviour: RSET ends the transaction in LMTP, the session stays greeted. Here RSET puts the server back to before LHLO: it
#            answers 250, and the MAIL that follows gets 503. After a delivered message MAIL gets 503 too, and so does a new
#            LHLO: only RSET and then LHLO make it work again. A client that keeps its connection, and says RSET before it
#            uses it again as Postfix's connection cache does, has every second mail refused for good. NOOP is 503 at all times.
#            (Some valid sequences end the serving process, "double free detected"; none of them is run here.)
# Seen on 2026-11-30:
#            LHLO client.example.test -> 250 HELP
#            MAIL FROM:<s@example.test> -> 250 2.1.0 Go ahead
#            RSET -> 250 2.0.0 OK, forgotten
#            MAIL FROM:<s@example.test> -> 503 5.0.0 Syntax error
#            NOOP -> 503 5.0.0 Syntax error
#            LHLO client.example.test -> 250 HELP
#            MAIL FROM:<s@example.test> -> 250 2.1.0 Go ahead
#            (and after a message: MAIL 503, LHLO 503, RSET 250, LHLO 250, MAIL 250; not run here, for it would deliver mail)
# Exit:      0 as described, 1 it changed, 77 no root or the pinned packages are not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; fi
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

[ "$(id -u)" = 0 ] || skip "run as root: lmtpd changes its group before it listens"
command -v python3 >/dev/null || skip "no python3"
cd "$tmp"
apt-get download mailutils-mda=1:3.15-4 libmailutils9=1:3.15-4 libmu-dbm9=1:3.15-4 >/dev/null 2>&1 \
    || skip "mailutils 1:3.15-4 is no longer on the mirror"
apt-get download libgsasl18 libntlm0 guile-3.0-libs libgc1 libkyotocabinet16v5 libpython3.11 libldap-2.5-0 libsasl2-2 \
    libwrap0 libnsl2 libtirpc3 libgdbm6 libdb5.3 libltdl7 libmariadb3 libpq5 libunistring2 libfribidi0 libgssglue1 \
    >/dev/null 2>&1 || skip "a library of Debian 12 is not on the mirror"
for package in ./*.deb; do dpkg -x "$package" root; done
library_path=$tmp/root/usr/lib/x86_64-linux-gnu:$tmp/root/lib/x86_64-linux-gnu
LD_LIBRARY_PATH=$library_path root/usr/sbin/lmtpd --version > version 2>&1 || skip "lmtpd does not start here: $(head -1 version)"
head -1 version

port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > lmtpd.conf <<EOF
server "inet://127.0.0.1:$port" { single-process yes; };
mode daemon;
foreground yes;
logging { syslog no; };
EOF
LD_LIBRARY_PATH=$library_path root/usr/sbin/lmtpd --config-file=lmtpd.conf --stderr 2>log & pid=$!
for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    sleep 0.1
done

cat > client.py <<'EOF'
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
f = s.makefile("rb")
def reply():
    while True:
        line = f.readline().decode().rstrip()
        if line[3:4] != "-":
            return line
        print("   ", line)
reply()
for command in sys.argv[2:]:
    s.sendall(command.encode() + b"\r\n")
    print(command, "->", reply())
EOF
seen=$(python3 client.py "$port" "LHLO client.example.test" "MAIL FROM:<s@example.test>" RSET "MAIL FROM:<s@example.test>" \
    NOOP "LHLO client.example.test" "MAIL FROM:<s@example.test>" | grep -v '^ ')
expected='LHLO client.example.test -> 250 HELP
MAIL FROM:<s@example.test> -> 250 2.1.0 Go ahead
RSET -> 250 2.0.0 OK, forgotten
MAIL FROM:<s@example.test> -> 503 5.0.0 Syntax error
NOOP -> 503 5.0.0 Syntax error
LHLO client.example.test -> 250 HELP
MAIL FROM:<s@example.test> -> 250 2.1.0 Go ahead'
echo "$seen"
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: MAIL after RSET is refused for good until LHLO is said again"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
