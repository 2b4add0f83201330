# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of the private Dovecot, in the language of 2.3 and in that of 2.4, and what doveadm copies with.

The latter is a file of etc/migrate as it is shipped, with the addresses of the private servers in it.
"""

from dataclasses import dataclass
from pathlib import Path

from tests import ROOT
from tests.support.certificates import Signed

PLANS = ROOT / "etc" / "migrate"
SERVICES = ("imap", "imap-login", "imap-hibernate", "imap-urlauth", "imap-urlauth-login", "imap-urlauth-worker")
"""Those whose programs come with Dovecot's IMAP package."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is different from one private Dovecot to another."""

    base: Path
    imap_port: int
    lmtp_port: int
    lmtps_port: int
    lmtp_socket: Path
    programs: Path
    """The directory of those of SERVICES."""
    prefix: str
    """Before the names of all folders but INBOX."""
    signed: Signed

    @property
    def users(self) -> Path:
        return self.base / "users"

    @property
    def masters(self) -> Path:
        """Who may log in for everybody."""
        return self.base / "masters"


def server_conf(version: tuple[int, int], settings: Settings) -> str:
    language = _in_2_4 if version >= (2, 4) else _in_2_3
    services = "".join(  # the master looks for every one of these, used or not
        f"service {name} {{\n  executable = {settings.programs}/{name}\n}}\n" for name in SERVICES
    )
    return language(settings) + _both(settings) + services


# no fsync: a crash of the server, as the tests make it, loses nothing that the kernel has
def _both(settings: Settings) -> str:
    base = settings.base
    return f"""\
listen = 127.0.0.1
base_dir = {base}/run
state_dir = {base}/state
log_path = {base}/log
mail_temp_dir = {base}/tmp
ssl = yes
first_valid_uid = 1
namespace inbox {{
  inbox = yes
  separator = .
  prefix = {settings.prefix}
}}
mail_fsync = never
service imap-login {{
  inet_listener imap {{
    port = {settings.imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  unix_listener {settings.lmtp_socket} {{
    mode = 0666
  }}
  inet_listener lmtp {{
    port = {settings.lmtp_port}
  }}
  inet_listener lmtps {{
    port = {settings.lmtps_port}
    ssl = yes
  }}
}}
protocol lmtp {{
  postmaster_address = postmaster@example.test
}}
"""


def _in_2_3(settings: Settings) -> str:
    return f"""\
protocols = imap lmtp
ssl_cert = <{settings.signed.certificate}
ssl_key = <{settings.signed.key}
disable_plaintext_auth = no
auth_username_format = %Ln
mail_location = sdbox:~/sdbox
passdb {{
  driver = passwd-file
  args = {settings.masters}
  master = yes
}}
passdb {{
  driver = passwd-file
  args = {settings.users}
}}
userdb {{
  driver = passwd-file
  args = {settings.users}
}}
"""


def _in_2_4(settings: Settings) -> str:
    return f"""\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
protocols = imap lmtp
ssl_server_cert_file = {settings.signed.certificate}
ssl_server_key_file = {settings.signed.key}
auth_allow_cleartext = yes
auth_username_format = %{{user | username | lower}}
mail_driver = sdbox
mail_path = ~/sdbox
passdb masters {{
  driver = passwd-file
  passwd_file_path = {settings.masters}
  master = yes
}}
passdb users {{
  driver = passwd-file
  passwd_file_path = {settings.users}
}}
userdb users {{
  driver = passwd-file
  passwd_file_path = {settings.users}
}}
"""


def migration_conf(shipped: str, host: str, port: int, master: str, password: str) -> str:
    """The file `shipped` of etc/migrate, which is to lie beside the server's own, for this old store."""
    text = (PLANS / shipped).read_text("utf-8")
    for there, here in {
        "!include /etc/dovecot/dovecot.conf": "!include dovecot.conf",
        "imapc_host = 192.0.2.10": f"imapc_host = {host}",
        "imapc_port = 143": f"imapc_port = {port}",
    }.items():
        assert there in text
        text = text.replace(there, here)
    assert f"imapc_master_user = {master}\nimapc_password = {password}\n" in text
    return text
