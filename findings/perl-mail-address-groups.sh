#!/usr/bin/env bash
# FINDING: Perl's Mail::Address makes addresses of a group's name: "undisclosed-recipients:" is one, and "team:ann@..." another.
#
# Software:  Mail::Address 2.21 (Debian 12's libmailtools-perl 2.21-2) beside Email::Address::XS 1.05 (libemail-address-xs-perl
#            1.05-1+b1); perl 5.36.
# Behaviour: RFC 5322 3.4 groups, among them the empty one that many mailers put into To: when all recipients are blind.
#            Email::Address::XS leaves the name out. Mail::Address, for which no colon is special, calls the empty group an
#            address of one mailbox, and joins the name and the first member: mail for ann goes to "team:ann", or to nobody.
#            It gives no error, and the second member is right, which makes a test with two people look half good.
# Seen on 2026-11-30:
#            undisclosed-recipients:;
#              Mail::Address <undisclosed-recipients:>
#              Email::Address::XS
#            team: ann@example.test, bob@example.test;
#              Mail::Address <team:ann@example.test> <bob@example.test>
#              Email::Address::XS <ann@example.test> <bob@example.test>
# Exit:      0 as described, 1 it changed, 77 the pinned packages or perl are not to be had.
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
skip() { echo "SKIP: $*"; exit 77; }

command -v perl >/dev/null || skip "no perl"
cd "$tmp"
apt-get download libmailtools-perl=2.21-2 libemail-address-xs-perl=1.05-1+b1 >/dev/null 2>&1 \
    || skip "libmailtools-perl 2.21-2 or libemail-address-xs-perl 1.05-1+b1 is no longer on the mirror"
for package in ./*.deb; do dpkg -x "$package" root; done
xs=$(dirname "$(find root -path '*Email/Address/XS.pm' | sed 's,/Address/XS.pm,,')")
export PERL5LIB=$tmp/root/usr/share/perl5:$tmp/$xs
perl -MMail::Address -MEmail::Address::XS -e '
    print "Mail::Address $Mail::Address::VERSION, Email::Address::XS $Email::Address::XS::VERSION, perl $^V\n"' 2>version.log \
    || skip "the modules do not load here: $(head -1 version.log)"

cat > probe.pl <<'EOF'
use strict; use warnings; use Mail::Address; use Email::Address::XS qw(parse_email_addresses);
for my $header ('undisclosed-recipients:;', 'team: ann@example.test, bob@example.test;') {
    print "$header\n";
    print join(' ', '  Mail::Address', map { '<' . $_->address . '>' } Mail::Address->parse($header)), "\n";
    print join(' ', '  Email::Address::XS', map { '<' . $_->address . '>' } parse_email_addresses($header)), "\n";
}
EOF
seen=$(perl probe.pl)
echo "$seen"
expected='undisclosed-recipients:;
  Mail::Address <undisclosed-recipients:>
  Email::Address::XS
team: ann@example.test, bob@example.test;
  Mail::Address <team:ann@example.test> <bob@example.test>
  Email::Address::XS <ann@example.test> <bob@example.test>'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: the group's name is in the address"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
