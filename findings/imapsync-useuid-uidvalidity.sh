#!/usr/bin/env bash
# FINDING: imapsync --useuid takes the mail of a folder that was deleted and made again for the mail it has copied before.
#
# Software:  imapsync 2.229 (its public repository, tag imapsync-2.229) with Mail::IMAPClient 3.43 of Debian 12
#            (libmail-imapclient-perl 3.43-1), between two servers that are pymap 0.36.7 from PyPI. With Cyrus 3.6.1 and
#            Dovecot 2.3.19 it is the same.
# Behaviour: --useuid remembers which UID on the one side is which UID on the other, in files below --tmpdir. RFC 3501 2.3.1.1:
#            UIDs mean something only together with the UIDVALIDITY of the folder. imapsync asks for it on both sides and never
#            looks at the answer. A folder that was deleted and made again between two runs, as mail clients do with Trash,
#            begins with the same UIDs; its new mail is not copied, the old stays in its place, also with --delete2, and the
#            run ends with "Detected 0 errors" and status 0. So does the fast way to keep a large mailbox in step for a
#            migration lose mail, and only a comparison by something else shows it.
# Seen on 2026-11-30:
#            run 1: status 0, Messages transferred: 1, Detected 0 errors
#            run 2: status 0, Messages transferred: 0, Detected 0 errors
#            host1 has <second@x>, host2 has <first@x>
# Exit:      0 as described, 1 it changed, 77 imapsync, pymap or the Perl modules are not to be had. IMAPSYNC=FILE names an
#            imapsync of this version that is here already.
set -euo pipefail

tmp=$(mktemp -d)
pids=
cleanup() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

command -v perl >/dev/null || skip "no perl"
python3 -m pip --version >/dev/null 2>&1 || skip "no python3 with pip"
if [ -z "${IMAPSYNC-}" ]; then
    git clone -q --depth 1 --branch imapsync-2.229 https://github.com/imapsync/imapsync "$tmp/imapsync" 2>/dev/null \
        || skip "https://github.com/imapsync/imapsync cannot be reached"
    IMAPSYNC=$tmp/imapsync/imapsync
fi
cp "$IMAPSYNC" "$tmp/program"
cd "$tmp"
echo "707620ea8a180bd9c51569ff0f9954392c21aa5dfa0884d238f8d296a116a4ba  program" | sha256sum --status -c || skip "$IMAPSYNC is not imapsync 2.229"

needed=()
for name in authen-ntlm cgi-pm crypt-openssl-rsa data-uniqid digest-hmac dist-checkconflicts encode-imaputf7 \
    file-copy-recursive file-tail html-parser io-socket-inet6 io-socket-ssl io-tee json-webtoken package-stash \
    proc-processtable readonly regexp-common sys-meminfo term-readkey unicode-string; do
    needed+=("lib$name-perl")
done
mapfile -t all < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances libmail-imapclient-perl libwww-perl "${needed[@]}" | grep -x 'lib[a-z0-9.+-]*-perl' | sort -u)
apt-get download "${all[@]/#%libmail-imapclient-perl/libmail-imapclient-perl=3.43-1}" >/dev/null 2>&1 \
    || skip "libmail-imapclient-perl 3.43-1, or another module, is no longer on the mirror"
for package in ./*.deb; do dpkg -x "$package" root; done
export PERL5LIB=$tmp/root/usr/share/perl5:$(echo "$tmp"/root/usr/lib/*/perl5/5.*)
perl program --version >version 2>&1 || skip "imapsync does not run here: $(tail -1 version)"
python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --target site pymap==0.36.7 \
    'setuptools<81' 2>/dev/null || skip "pymap 0.36.7 cannot be installed"
export PYTHONPATH=$tmp/site PYTHONWARNINGS=ignore
echo "imapsync $(tail -1 version), $(perl -MMail::IMAPClient -e 'print "Mail::IMAPClient $Mail::IMAPClient::VERSION, perl $^V"'), pymap 0.36.7"

ports=()
for side in 1 2; do
    port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
    python3 site/bin/pymap --host 127.0.0.1 --port "$port" --no-tls --no-service managesieve dict --demo-data >"log$side" 2>&1 &
    pids="$pids $!"
    ports+=("$port")
    for _ in $(seq 200); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
        sleep 0.1
    done
done

cat > client.py <<'EOF'
import imaplib, sys
port, what = int(sys.argv[1]), sys.argv[2]
with imaplib.IMAP4("127.0.0.1", port) as imap:
    imap.login("demouser", "demopass")
    if what == "show":
        imap.select("Folder", readonly=True)
        print(imap.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])")[1][0][1].decode().split()[1])
    else:
        imap.delete("Folder")
        imap.create("Folder")
        imap.append("Folder", "", None, f"Message-ID: <{what}@x>\r\n\r\n{what}\r\n".encode())
EOF
echo demopass > passfile
run() {
    local status=0
    perl program --host1 127.0.0.1 --port1 "${ports[0]}" --user1 demouser --passfile1 "$tmp/passfile" --nossl1 --notls1 \
        --host2 127.0.0.1 --port2 "${ports[1]}" --user2 demouser --passfile2 "$tmp/passfile" --nossl2 --notls2 \
        --useuid --delete2 --folder Folder --tmpdir "$tmp/cache" --nolog --pidfile "" >output 2>&1 || status=$?
    echo "run $1: status $status, $(sed -n 's/^\(Messages transferred\) *: *\([0-9]*\).*/\1: \2/p' output), $(grep '^Detected' output)"
}
seen=$(
    python3 client.py "${ports[0]}" first
    run 1
    python3 client.py "${ports[0]}" second
    run 2
    echo "host1 has $(python3 client.py "${ports[0]}" show), host2 has $(python3 client.py "${ports[1]}" show)"
)
echo "$seen"
expected='run 1: status 0, Messages transferred: 1, Detected 0 errors
run 2: status 0, Messages transferred: 0, Detected 0 errors
host1 has <second@x>, host2 has <first@x>'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: another folder's mail is taken for the one that was copied"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
