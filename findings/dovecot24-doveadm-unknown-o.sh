#!/usr/bin/env bash
# FINDING: doveadm ignores a setting after -o that it does not know, without a word, where in a file it is a fatal error.
#
# Software:  Dovecot 2.4.1, Debian 13's dovecot-core, dovecot-imapd, dovecot-lmtpd 1:2.4.1+dfsg1-6+deb13u7.
# Behaviour: `doveadm -o NAME=VALUE` sets what the configuration file would set. A NAME that is no setting, misspelt or gone with
#            a release, changes nothing and is not mentioned: exit status 0. So `-o mail_location=...`, which named another mailbox
#            to 2.3 and is mail_driver and mail_path in 2.4, shows the user's own mailbox: a script that compares two
#            stores compares one with itself, and one that deletes in the other deletes in the own.
# Seen on 2026-11-30, alice has one mail, and /t/empty is a maildir without any:
#            -o mail_path=/t/empty -> 0 mails, exit 0
#            -o mail_location=maildir:/t/empty -> 1 mails, exit 0, 0 lines on standard error
#            -o no_such_setting=x -> 1 mails, exit 0, 0 lines on standard error
#            no_such_setting = x in the file -> exit 89
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
mkdir -p root/t/empty/{new,cur,tmp} && chown -R 65534 root/t/empty
sed 's/^mail_driver/no_such_setting = x\n&/' root/t/conf >root/t/unknown
mails() { # $1: a setting, $2: whether to count what it complains of
    local status=0 found
    found=$("${inside[@]}" doveadm -c /t/conf -o "$1" search -u alice mailbox INBOX 2>err | wc -l; exit "${PIPESTATUS[0]}") || status=$?
    printf -- '-o %s -> %s mails, exit %s' "$1" "$found" "$status"
    [ -z "${2-}" ] || printf ', %s lines on standard error' "$(grep -c -v mtab err || true)"
    echo
}
seen=$(
    mails mail_path=/t/empty
    mails mail_location=maildir:/t/empty count
    mails no_such_setting=x count
    status=0
    "${inside[@]}" doveadm -c /t/unknown search -u alice mailbox INBOX >/dev/null 2>&1 || status=$?
    echo "no_such_setting = x in the file -> exit $status"
)
expected='-o mail_path=/t/empty -> 0 mails, exit 0
-o mail_location=maildir:/t/empty -> 1 mails, exit 0, 0 lines on standard error
-o no_such_setting=x -> 1 mails, exit 0, 0 lines on standard error
no_such_setting = x in the file -> exit 89'
echo "$seen"
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: what is unknown is ignored"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
