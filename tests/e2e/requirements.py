# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end-to-end tests need from the machine, and the sentence that says what is missing and how to get it."""

import os
import shutil
import subprocess
from pathlib import Path

INSTALL = "sudo tests/e2e/install.sh"

SBIN = "/usr/sbin:/usr/bin"
SYSTEM_PYTHON = "/usr/bin/python3"
CYRUS_BIN = Path("/usr/lib/cyrus/bin")
POSTFIX_DAEMONS = Path("/usr/lib/postfix/sbin")
DOVECOT = Path("/usr/sbin/dovecot")
DOVEADM = Path("/usr/bin/doveadm")
DOVECOT_LMTP = Path("/usr/lib/dovecot/lmtp")
SASLPASSWD = "/usr/sbin/saslpasswd2"
UNPACKED = Path(os.environ.get("LMTP_PROXY_E2E_STATE", "/var/lib/lmtp-proxy-e2e"))
"""Where install.sh keeps what cannot be installed beside Cyrus and Postfix."""
UNPACKED_MTAS = UNPACKED / "mtas"
"""Exim, Sendmail and OpenSMTPD, with the paths of their packages."""
ANSIBLE = UNPACKED / "ansible/bin/ansible-playbook"


def program(name: str) -> str | None:
    """The path of a program, also when the caller's PATH has no sbin directories."""
    return shutil.which(name, path=SBIN)


def dovecot_imap_programs(root: Path = Path("/")) -> Path | None:
    """The directory of Dovecot's `imap` and `imap-login`: unpacked by install.sh, or installed as usual.

    root: of what is asked about; the path is as it is seen there.
    """
    if not _there(root, DOVECOT):
        return None
    for directory in (UNPACKED / "dovecot-imapd/usr/lib/dovecot", Path("/usr/lib/dovecot")):
        if all(_there(root, directory / name) for name in ("imap", "imap-login")):
            return directory
    return None


def missing_stores(root: Path = Path("/")) -> list[str]:
    """What of Cyrus and Dovecot is not installed below this root."""
    return [
        name
        for name, there in (
            ("Cyrus (cyrus-imapd)", _there(root, CYRUS_BIN / "lmtpd") and _there(root, CYRUS_BIN / "imapd")),
            ("saslpasswd2 (sasl2-bin)", _there(root, Path(SASLPASSWD))),
            ("Dovecot (dovecot-core, dovecot-lmtpd)", _there(root, DOVECOT) and _there(root, DOVECOT_LMTP)),
            ("Dovecot's imap (dovecot-imapd)", dovecot_imap_programs(root)),
        )
        if not there
    ]


def _there(root: Path, path: Path) -> bool:
    return (root / path.relative_to("/")).exists()


def perdition_map() -> Path | None:
    """Perdition's library for maps in gdbm files."""
    return next(Path("/usr/lib").glob("*/libperditiondb_gdbm.so.0"), None)


def missing_for_servers() -> str | None:
    """Why Postfix, Cyrus and Dovecot cannot be started here, in one line; None when they can."""
    absent = missing_stores()
    if not program("postfix") or not (POSTFIX_DAEMONS / "lmtp").exists():
        absent.insert(0, "Postfix (postfix)")
    if absent:
        return f"not installed: {', '.join(absent)}; to install: {INSTALL}"
    if os.geteuid() != 0:
        return "Postfix, Cyrus and Dovecot start only as root: run the tests as root"
    return None


def missing_for_migration() -> str | None:
    """Why users cannot be migrated here with all the tools of docs/migration.md, in one line; None when they can."""
    absent = [
        name
        for name, there in (
            ("Perdition (perdition)", program("perdition.imap4") and perdition_map()),
            ("makegdbm (perdition)", program("makegdbm")),
            ("mbsync (isync)", program("mbsync")),
        )
        if not there
    ]
    if absent:
        return f"not installed: {', '.join(absent)}; to install: {INSTALL}"
    return missing_for_servers()


def missing_for_smtp_source() -> str | None:
    """Why Postfix's load generator and sink cannot be used here, in one line; None when they can."""
    absent = [name for name in ("smtp-source", "smtp-sink") if program(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (postfix); to install: {INSTALL}"
    return None


def missing_for_other_mtas() -> str | None:
    """Why Exim, Sendmail and OpenSMTPD cannot be run here, in one line; None when they can."""
    absent = [
        name
        for name, there in (
            ("Exim (exim4-daemon-light)", (UNPACKED_MTAS / "usr/sbin/exim4").exists()),
            ("Sendmail (sendmail-bin)", (UNPACKED_MTAS / "usr/libexec/sendmail/sendmail").exists()),
            ("its macros (sendmail-cf)", (UNPACKED_MTAS / "usr/share/sendmail/cf/m4/cf.m4").exists()),
            ("m4", program("m4")),
            ("OpenSMTPD (opensmtpd)", (UNPACKED_MTAS / "usr/sbin/smtpd").exists()),
        )
        if not there
    ]
    if absent:
        return f"not unpacked or installed: {', '.join(absent)}; to install: {INSTALL}"
    if os.geteuid() != 0:
        return "Exim, Sendmail and OpenSMTPD run only as root: run the tests as root"
    if subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, check=False).returncode != 0:
        return "Exim, Sendmail and OpenSMTPD need mount namespaces (unshare --mount), which are not allowed here"
    return None


def missing_for_aiosmtpd() -> str | None:
    """Why aiosmtpd cannot be run here, in one line; None when it can."""
    if subprocess.run([SYSTEM_PYTHON, "-c", "import aiosmtpd.lmtp"], capture_output=True, check=False).returncode != 0:
        return f"not installed: aiosmtpd (python3-aiosmtpd); to install: {INSTALL}"
    return None


def missing_for_ansible() -> str | None:
    """Why no play can be run here, in one line; None when it can."""
    if not ANSIBLE.exists():
        return f"not installed: Ansible (ansible-core, from PyPI); to install: {INSTALL}"
    return None


def run(*command: str, stdin: str = "", group: int | None = None) -> str:
    """Runs a command to its end and returns its output; AssertionError with all it said when it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False, group=group)
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
