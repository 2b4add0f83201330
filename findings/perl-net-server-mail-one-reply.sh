#!/usr/bin/env bash
# FINDING: Perl's Net::Server::Mail::LMTP joins the replies after DATA into one multi-line reply, each line with its own code.
#
# Software:  Net::Server::Mail::LMTP of Debian 12's libnet-server-mail-perl 0.28-2, perl 5.36.
# Behaviour: RFC 2033 wants one reply for each accepted recipient. This module calls the DATA callback once a recipient, as
#            its manual says, but writes every reply save the last with a hyphen after the code. On the wire that is one
#            reply: a client that counts replies waits for two more until it times out, and one that keeps the code of the
#            last line takes the 452 in the middle for success.
# Seen on 2026-11-30, three recipients, the second one's mailbox full:
#            250-stored a@example.test
#            452-full b@example.test
#            250 stored c@example.test
#            and nothing more within 2 s.
# Exit:      0 as described, 1 it changed, 77 the pinned package or perl is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; fi
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

command -v perl >/dev/null || skip "no perl"
command -v python3 >/dev/null || skip "no python3"
cd "$tmp"
apt-get download libnet-server-mail-perl=0.28-2 >/dev/null 2>&1 \
    || skip "libnet-server-mail-perl 0.28-2 is no longer on the mirror"
dpkg -x ./*.deb root
echo "Net::Server::Mail from libnet-server-mail-perl 0.28-2, $(perl -e 'print "perl $^V"')"

cat > server.pl <<'EOF'
use strict; use warnings; use IO::Socket::INET; use Net::Server::Mail::LMTP;
my $listener = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', LocalPort => 0) or die;
open my $out, '>', $ARGV[0] or die; print $out $listener->sockport, "\n"; close $out;
my $client = $listener->accept;
my $lmtp = Net::Server::Mail::LMTP->new(socket => $client);
$lmtp->set_callback(DATA => sub {
    my ($session, $data, $recipient) = @_;
    return $recipient =~ /^b/ ? (0, 452, "full $recipient") : (1, 250, "stored $recipient");
});
$lmtp->process;
EOF
perl -I root/usr/share/perl5 server.pl port & pid=$!
for _ in $(seq 50); do [ -s port ] && break; sleep 0.1; done

cat > client.py <<'EOF'
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
f = s.makefile("rb")
def reply():
    while True:
        line = f.readline()
        if not line or line[3:4] == b" ":
            return
reply()
for command in ("LHLO client.example.test", "MAIL FROM:<s@example.test>", "RCPT TO:<a@example.test>",
                "RCPT TO:<b@example.test>", "RCPT TO:<c@example.test>", "DATA"):
    s.sendall(command.encode() + b"\r\n")
    reply()
s.sendall(b"Subject: test\r\n\r\nhello\r\n.\r\n")
s.settimeout(2)
got = b""
try:
    while chunk := s.recv(4096):
        got += chunk
except TimeoutError:
    pass
sys.stdout.write(got.decode())
EOF
seen=$(python3 client.py "$(cat port)" | tr -d '\r')
echo "$seen"
expected='250-stored a@example.test
452-full b@example.test
250 stored c@example.test'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: one reply for three recipients, two codes in it"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
