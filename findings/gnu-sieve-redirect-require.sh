#!/usr/bin/env bash
# FINDING: no Sieve script can redirect a mail both in GNU mailutils and in Cyrus: one demands require "redirect", one refuses it.
#
# Software:  sieve (GNU Mailutils) 3.15, Debian 12's mailutils 1:3.15-4; sievec of cyrus-imapd 3.6.1-4+deb12u5.
# Behaviour: redirect is one of the four base actions of RFC 5228, which need no require; "redirect" is no capability's name.
#            GNU sieve refuses it without require "redirect" (as the RFC's forerunner of 2001, RFC 3028, did not ask either)
#            and takes it with; Cyrus the other way round. keep, discard and stop are as in the RFC on both.
# Seen on 2026-11-30:
#            GNU, plain: 1.1-8: action `redirect' has not been required
#            GNU, with require: compiles
#            Cyrus, plain: compiles
#            Cyrus, with require: line 1: Unsupported feature(s) in "require": "redirect"
# Exit:      0 as described, 1 it changed, 77 the pinned packages are not to be had.
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
skip() { echo "SKIP: $*"; exit 77; }

cd "$tmp"
apt-get download mailutils=1:3.15-4 libmailutils9=1:3.15-4 libmu-dbm9=1:3.15-4 >/dev/null 2>&1 \
    || skip "mailutils 1:3.15-4 is no longer on the mirror"
apt-get download cyrus-imapd=3.6.1-4+deb12u5 cyrus-common=3.6.1-4+deb12u5 >/dev/null 2>&1 \
    || skip "cyrus-imapd 3.6.1-4+deb12u5 is no longer on the mirror"
apt-get download libgsasl18 libntlm0 guile-3.0-libs libgc1 libkyotocabinet16v5 libpython3.11 libldap-2.5-0 libsasl2-2 libwrap0 \
    libnsl2 libtirpc3 libgdbm6 libdb5.3 libltdl7 libmariadb3 libpq5 libunistring2 libfribidi0 libgssglue1 libjansson4 \
    libpcre3 libicu72 libsqlite3-0 \
    >/dev/null 2>&1 || skip "a library of Debian 12 is not on the mirror"
for package in ./*.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$tmp/root/usr/lib/x86_64-linux-gnu:$tmp/root/lib/x86_64-linux-gnu:$tmp/root/usr/lib/cyrus:$tmp/root/usr/lib
sievec=$(find root -name sievec -type f | head -1)
root/usr/bin/sieve --version > version 2>&1 || skip "GNU sieve does not start here: $(head -1 version)"
head -1 version
printf 'configdirectory: %s\nsieve_extensions: fileinto\n' "$tmp" > imapd.conf
echo 'redirect "user@example.test";' > plain.sieve
printf 'require "redirect";\nredirect "user@example.test";\n' > with.sieve
echo 'keep;' > keep.sieve
"$sievec" -C imapd.conf keep.sieve keep.bc > sievec.log 2>&1 || skip "Cyrus' sievec does not start here: $(head -1 sievec.log)"

gnu() {
    if HOME=$tmp root/usr/bin/sieve --no-config --compile-only "$1" > out 2>&1; then echo compiles; return; fi
    sed -n "s/.*$1://p" out | head -1
}
cyrus() {
    if "$sievec" -C imapd.conf "$1" out.bc > out 2>&1; then echo compiles; return; fi
    grep '^line' out | head -1 | tr -d '\r'
}
seen="GNU, plain: $(gnu plain.sieve)
GNU, with require: $(gnu with.sieve)
Cyrus, plain: $(cyrus plain.sieve)
Cyrus, with require: $(cyrus with.sieve)"
echo "$seen"
expected="GNU, plain: 1.1-8: action \`redirect' has not been required
GNU, with require: compiles
Cyrus, plain: compiles
Cyrus, with require: line 1: Unsupported feature(s) in \"require\": \"redirect\""
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: what one demands the other refuses"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
