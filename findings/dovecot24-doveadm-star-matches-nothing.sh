#!/usr/bin/env bash
# FINDING: where folders have the prefix INBOX., the pattern `*` is no folder at all to doveadm's `mailbox status` and `search`.
#
# Software:  Dovecot 2.4.1, Debian 13's dovecot-core, dovecot-imapd, dovecot-lmtpd 1:2.4.1+dfsg1-6+deb13u7.
#            Of 2.3.19.1, Debian 12's, seen likewise.
# Behaviour: `mailbox status FIELDS '*'` and a query with `mailbox '*'` (search, fetch, expunge) find neither the INBOX nor any
#            folder below it, with exit status 0 and no word; `mailbox list '*'` shows the INBOX alone. Without a prefix each of
#            them finds all folders. Whoever counts a user's mail so, to compare two stores say, finds none in one of the two.
# Seen on 2026-11-30, with one mail in the INBOX, and another folder:
#            prefix INBOX.: list -> INBOX INBOX.Sent; list * -> INBOX; status * -> nothing; search * -> 0; search INBOX -> 1
#            no prefix: list -> INBOX Sent; list * -> INBOX Sent; status * -> INBOX Sent; search * -> 1; search INBOX -> 1
# Exit:      0 as described, 1 it changed, 77 no root or the pinned packages are not to be had.
set -euo pipefail

tmp=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill -9 "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi
    rm -rf "$tmp"
}
trap cleanup EXIT
skip() { echo "SKIP: $*"; exit 77; }

[ "$(id -u)" = 0 ] || skip "run as root: Dovecot of Debian 13 needs a root of its own"
command -v python3 >/dev/null || skip "no python3"
chmod 755 "$tmp"
cd "$tmp"
mkdir -p apt/lists/partial apt/cache/archives/partial root
version=1:2.4.1+dfsg1-6+deb13u7
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror%/} trixie main" >apt/sources
: >apt/status
apt=(apt-get -qq -o "Dir::State=$tmp/apt" -o "Dir::State::status=$tmp/apt/status" -o "Dir::Cache=$tmp/apt/cache"
    -o "Dir::Etc::sourcelist=$tmp/apt/sources" -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User=root)
{ "${apt[@]}" update && "${apt[@]}" install -y --download-only --no-install-recommends base-files \
    dovecot-{core,imapd,lmtpd}="$version"; } >log 2>&1 || skip "Dovecot $version is not to be had: $(tail -n 1 log)"
for package in apt/cache/archives/*.deb; do dpkg -x "$package" root; done
printf '%s:x:%s:%s::/:/bin/false\n' root 0 0 nobody 65534 65534 >root/etc/passwd
printf '%s:x:%s:\n' root 0 nogroup 65534 >root/etc/group
mkdir -p root/{dev,proc,t/mail,t/home} && chown 65534 root/t/{mail,home}
cat >root/t/conf <<'EOF'
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
protocols = imap lmtp
listen = 127.0.0.1
base_dir = /t/run
state_dir = /t/state
log_path = /t/log
ssl = no
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = nobody
mail_driver = maildir
mail_path = /t/home/%{user | username}/mail
passdb static {
  password = secret
}
userdb static {
  fields {
    uid = nobody
    gid = nogroup
    home = /t/home/%{user | username}
  }
}
service imap-login {
  inet_listener imap {
    port = 0
  }
  inet_listener imaps {
    port = 0
  }
}
service lmtp {
  unix_listener /t/lmtp {
    mode = 0600
  }
}
protocol lmtp {
  auth_username_format = %{user | username | lower}
  postmaster_address = postmaster@example.test
}
EOF
cat >>root/t/conf <<'EOF'
namespace inbox {
  inbox = yes
  separator = .
  prefix = INBOX.
}
EOF
inside=(unshare --mount --pid --fork --kill-child bash -c
    'mount --rbind /dev root/dev && mount -t proc proc root/proc && exec chroot root "$@"' bash)
"${inside[@]}" dovecot --version >version 2>&1 || skip "Dovecot does not start here: $(head -n 1 version)"
cat version
"${inside[@]}" dovecot -F -c /t/conf >out 2>&1 & pid=$!
for _ in $(seq 100); do [ ! -S root/t/lmtp ] || break; sleep 0.1; done
cat >send.py <<'EOF'
import smtplib, sys
for user in sys.argv[2:]:
    with smtplib.LMTP(sys.argv[1]) as lmtp:
        lmtp.ehlo(), lmtp.mail("s@example.test"), lmtp.rcpt(f"{user}@example.test")
        code, _ = lmtp.data(f"Subject: for {user}\n\nhello\n".encode())
        print(f"mail for {user} -> {code}")
EOF
python3 send.py "$tmp/root/t/lmtp" alice
"${inside[@]}" doveadm -c /t/conf mailbox create -u alice INBOX.Sent
sed 's/^  prefix = .*/  prefix =/' root/t/conf >root/t/plain
names() { local found; found=$(cut -d ' ' -f 1 | sort | paste -s -d ' '); echo "${found:-nothing}"; }
shown() { # $1: what it is, $2: configuration
    ask() { "${inside[@]}" doveadm -c "/t/$configuration" "$@" 2>err; }
    configuration=$2
    printf '%s: list -> %s; list * -> %s; status * -> %s; search * -> %s; search INBOX -> %s\n' "$1" \
        "$(ask mailbox list -u alice | names)" "$(ask mailbox list -u alice '*' | names)" \
        "$(ask mailbox status -u alice messages '*' | names)" "$(ask search -u alice mailbox '*' | wc -l)" \
        "$(ask search -u alice mailbox INBOX | wc -l)"
}
seen=$(shown "prefix INBOX." conf; shown "no prefix" plain)
expected='prefix INBOX.: list -> INBOX INBOX.Sent; list * -> INBOX; status * -> nothing; search * -> 0; search INBOX -> 1
no prefix: list -> INBOX Sent; list * -> INBOX Sent; status * -> INBOX Sent; search * -> 1; search INBOX -> 1'
echo "$seen"
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: a star finds nothing below a prefix"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
