#!/usr/bin/env bash
# FINDING: the HELO that XCLIENT gives to Dovecot's LMTP is forgotten with the LHLO behind it, and the log has the client last of all.
#
# Software:  Dovecot 2.4.1, Debian 13's dovecot-core, dovecot-lmtpd 1:2.4.1+dfsg1-6+deb13u7. Of 2.3.19.1, Debian 12's, seen likewise.
# Behaviour: after `XCLIENT ADDR=... HELO=mx.example.test` and the LHLO that has to follow, the Received header has the client's
#            address beside the name in that LHLO, which is the relay's. The log says `Connect from` with the relay's address;
#            the client's is in the line of the disconnection alone. Who wants the client's name kept has to say it in the LHLO.
# Seen on 2026-12-01, XCLIENT ADDR=192.0.2.7 HELO=mx.example.test from 127.0.0.1, then LHLO relay.example.test:
#            Received: from relay.example.test ([192.0.2.7]); HELO of XCLIENT in the mail: 0
#            log: Connect from 127.0.0.1; Disconnect from 192.0.2.7
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
    dovecot-{core,lmtpd}="$version"; } >log 2>&1 || skip "Dovecot $version is not to be had: $(tail -n 1 log)"
for package in apt/cache/archives/*.deb; do dpkg -x "$package" root; done
printf '%s:x:%s:%s::/:/bin/false\n' root 0 0 nobody 65534 65534 >root/etc/passwd
printf '%s:x:%s:\n' root 0 nogroup 65534 >root/etc/group
mkdir -p root/{dev,proc,t/mail,t/home} && chown 65534 root/t/{mail,home}
cat >root/t/conf <<'EOF'
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
protocols = lmtp
listen = 127.0.0.1
base_dir = /t/run
login_trusted_networks = 127.0.0.0/8
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
service lmtp {
  inet_listener lmtp {
    port = PORT
  }
}
protocol lmtp {
  auth_username_format = %{user | username | lower}
  postmaster_address = postmaster@example.test
}
EOF
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
sed -i "s/PORT/$port/" root/t/conf
inside=(unshare --mount --pid --fork --kill-child bash -c
    'mount --rbind /dev root/dev && mount -t proc proc root/proc && exec chroot root "$@"' bash)
"${inside[@]}" dovecot --version >version 2>&1 || skip "Dovecot does not start here: $(head -n 1 version)"
cat version
"${inside[@]}" dovecot -F -c /t/conf >out 2>&1 & pid=$!
cat >send.py <<'EOF'
import smtplib, sys, time
for _ in range(100):
    try:
        lmtp = smtplib.LMTP("127.0.0.1", int(sys.argv[1]), timeout=10)
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
lmtp.ehlo("relay.example.test")
assert "xclient" in lmtp.esmtp_features, lmtp.esmtp_features
lmtp.docmd("XCLIENT", "ADDR=192.0.2.7 HELO=mx.example.test")
lmtp.ehlo("relay.example.test")
lmtp.mail("s@example.test")
lmtp.rcpt("alice@example.test")
print("mail ->", lmtp.data(b"Subject: x\n\nhello\n")[0])
lmtp.quit()
EOF
python3 send.py "$port"
mail=$(find root/t/home/alice/mail/new -type f)
for _ in $(seq 50); do ! grep -q 'Disconnect from' root/t/log || break; sleep 0.1; done
from() { sed -n "s/.*$1 from \([0-9.]*\).*/\1/p" root/t/log | sort -u | paste -s -d ' '; }
seen=$(printf 'Received: from %s; HELO of XCLIENT in the mail: %s\nlog: Connect from %s; Disconnect from %s\n' \
    "$(sed -n 's/^Received: from //p' "$mail" | head -n 1)" "$(grep -c 'mx\.example\.test' "$mail" || true)" \
    "$(from Connect)" "$(from Disconnect)")
expected='Received: from relay.example.test ([192.0.2.7]); HELO of XCLIENT in the mail: 0
log: Connect from 127.0.0.1; Disconnect from 192.0.2.7'
echo "$seen"
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: the last LHLO is the client's name"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
