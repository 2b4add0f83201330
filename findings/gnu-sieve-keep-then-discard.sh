#!/usr/bin/env bash
# FINDING: in GNU mailutils' sieve, discard undoes an explicit keep: a script of "keep; discard;" deletes every mail.
#
# Software:  sieve (GNU Mailutils) 3.15, Debian 12's mailutils 1:3.15-4.
# Behaviour: RFC 5228 4.4: discard cancels the implicit keep and nothing else, and where keep was said too the mail is kept.
#            Here each marks or unmarks the mail as deleted and the last one wins; so the common form "if ... { keep; }" without
#            stop, and a discard at the end, which keeps the chosen mail in other implementations, empties the mailbox. With
#            "discard; keep;" the mail stays.
# Seen on 2026-11-30, a mailbox with one mail:
#            keep; discard;  -> 0 mails left
#            discard; keep;  -> 1 mails left
# Exit:      0 as described, 1 it changed, 77 the pinned packages are not to be had.
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
skip() { echo "SKIP: $*"; exit 77; }

cd "$tmp"
apt-get download mailutils=1:3.15-4 libmailutils9=1:3.15-4 libmu-dbm9=1:3.15-4 >/dev/null 2>&1 \
    || skip "mailutils 1:3.15-4 is no longer on the mirror"
apt-get download libgsasl18 libntlm0 guile-3.0-libs libgc1 libkyotocabinet16v5 libpython3.11 libldap-2.5-0 libsasl2-2 libwrap0 \
    libnsl2 libtirpc3 libgdbm6 libdb5.3 libltdl7 libmariadb3 libpq5 libunistring2 libfribidi0 libgssglue1 \
    >/dev/null 2>&1 || skip "a library of Debian 12 is not on the mirror"
for package in ./*.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$tmp/root/usr/lib/x86_64-linux-gnu:$tmp/root/lib/x86_64-linux-gnu
root/usr/bin/sieve --version > version 2>&1 || skip "GNU sieve does not start here: $(head -1 version)"
head -1 version

left_after() {
    printf 'From s@example.test Mon Nov 30 12:00:00 2026\nFrom: s@example.test\nSubject: test\n\nhello\n\n' > mbox
    echo "$1" > script.sieve
    HOME=$tmp root/usr/bin/sieve --no-config --mbox-url="$tmp/mbox" script.sieve > log 2>&1
    echo "$1  -> $(grep -c '^From ' mbox || true) mails left"
}
seen=$(left_after 'keep; discard;'; left_after 'discard; keep;')
echo "$seen"
expected='keep; discard;  -> 0 mails left
discard; keep;  -> 1 mails left'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: the last of the two wins"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
