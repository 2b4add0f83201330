#!/usr/bin/env bash
# FINDING: doveconf shows lmtp_user_concurrency_limit = 0 where Dovecot 2.4 takes no more than ten mails for one user at a time.
#
# Software:  Dovecot 2.4.1, Debian 13's dovecot-core, dovecot-imapd, dovecot-lmtpd 1:2.4.1+dfsg1-6+deb13u7.
# Behaviour: the eleventh RCPT for one user, on whichever connection, is 451 until another one has ended: new in 2.4, where the
#            setting is not given. `doveconf` tells of 0 then, which reads like "no limit", and is no value that the setting could
#            have: 0 in the file is a fatal error. A burst of mail to one mailbox is deferred for minutes, and the place where an
#            administrator looks denies that there is a limit.
# Seen on 2026-11-30:
#            doveconf -> lmtp_user_concurrency_limit = 0
#            12 RCPT for one user, each on a connection of its own -> 10 times 250, 2 times 451
#            451 4.3.0 <alice@example.test> Too many concurrent deliveries for user
#            with 0 in the file -> lmtp_user_concurrency_limit must not be 0 (did you mean "unlimited"?)
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
cat >rcpt.py <<'EOF'
import smtplib, sys
connections, replies = [], []
for _ in range(12):
    lmtp = smtplib.LMTP(sys.argv[1])
    lmtp.ehlo(), lmtp.mail("s@example.test")
    replies.append(lmtp.rcpt("alice@example.test"))
    connections.append(lmtp)
codes = [code for code, _ in replies]
print(f"12 RCPT for one user, each on a connection of its own -> {codes.count(250)} times 250, {codes.count(451)} times 451")
print(*(f"{code} {text.decode()}" for code, text in replies[-1:]))
for lmtp in connections:
    lmtp.quit()
EOF
sed 's/^protocol lmtp {/&\n  lmtp_user_concurrency_limit = 0/' root/t/conf >root/t/zero
seen=$(
    "${inside[@]}" doveconf -c /t/conf -f protocol=lmtp lmtp_user_concurrency_limit 2>/dev/null | sed 's/^/doveconf -> /'
    python3 rcpt.py "$tmp/root/t/lmtp"
    "${inside[@]}" doveconf -n -c /t/zero 2>&1 | sed -n 's/.*\(lmtp_user_concurrency_limit must .*\)/with 0 in the file -> \1/p' | head -n 1 || true
)
expected='doveconf -> lmtp_user_concurrency_limit = 0
12 RCPT for one user, each on a connection of its own -> 10 times 250, 2 times 451
451 4.3.0 <alice@example.test> Too many concurrent deliveries for user
with 0 in the file -> lmtp_user_concurrency_limit must not be 0 (did you mean "unlimited"?)'
echo "$seen"
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: there is a limit of ten, and doveconf shows none"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
