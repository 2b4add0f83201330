# SPDX-License-Identifier: GPL-3.0-or-later
"""The scripts that verify a sync: each is refused that copied nothing, half, one mail less, the wrong user's mailbox,
and so is whatever a tool or a server says that is not known here.

By programs and servers that play a script; tests/e2e/test_migrate_verify.py has the real ones.
"""

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from tests import ROOT
from tests.support import doveadm
from tests.support.imap import FakeImap, Folders, prefixed

PLANS = ROOT / "etc" / "migrate"
SERVER = "192.0.2.10:143"
USER = "alice@example.org"
Mail = tuple[int, str, int, str]


def folders_of(user: str) -> dict[str, list[Mail]]:
    return {
        "INBOX": [(uid, f"<{uid}.inbox.{user}>", 1000 + uid, r"\Seen" if uid % 2 else "") for uid in range(1, 9)],
        "Sent": [(uid, f"<{uid}.sent.{user}>", 500, r"\Answered \Seen $Forwarded") for uid in range(1, 5)],
        "a b": [],
        "Entw\u00fcrfe": [(7, "", 77, r"\Draft")],
    }


OLD = folders_of(USER)


def changed(folder: str, position: int, **values: object) -> dict[str, list[Mail]]:
    found = deepcopy(OLD)
    mail = dict(zip(("uid", "identity", "size", "flags"), found[folder][position], strict=True)) | values
    found[folder][position] = tuple(mail.values())  # type: ignore[assignment]
    return found


SYNCS: dict[str, tuple[dict[str, list[Mail]], str]] = {
    "nothing": ({"INBOX": []}, "INBOX: 8 only in the old store: <1.inbox."),
    "no mailbox": ({}, "INBOX: only in the old store, with 8 messages"),
    "empty folders": ({name: [] for name in OLD}, "Sent: 4 only in the old store: <1.sent."),
    "half": (
        {name: messages[: len(messages) // 2] for name, messages in OLD.items()},
        "INBOX: 4 only in the old store: <5.inbox.alice@example.org> (1005 octets",
    ),
    "one folder less": (
        {name: messages for name, messages in OLD.items() if name != "Sent"},
        "Sent: only in the old store, with 4 messages",
    ),
    "an empty folder less": ({name: messages for name, messages in OLD.items() if messages}, "a b: only in the old"),
    "one mail less": ({**OLD, "INBOX": OLD["INBOX"][:-1]}, "INBOX: 1 only in the old store: <8.inbox."),
    "one mail less in the middle": (
        {**OLD, "INBOX": [*OLD["INBOX"][:3], *OLD["INBOX"][4:]]},
        "INBOX: 1 only in the old store: <4.inbox.",
    ),
    "one mail more": (
        {**OLD, "INBOX": [*OLD["INBOX"], (9, "<new@x>", 5, "")]},
        "INBOX: 1 only in the new store: <new@x> (5 octets",
    ),
    "the wrong user's": (folders_of("bob@example.org"), "INBOX: 8 only in the new store: <1.inbox.bob@example.org>"),
    "another mail": (changed("Sent", 1, identity="<other@x>"), "Sent: 1 only in the new store: <other@x>"),
    "a cut mail": (changed("Sent", 1, size=499), "<2.sent.alice@example.org> (499 octets"),
    "a mail without its flags": (changed("INBOX", 0, flags=""), "<1.inbox.alice@example.org> (1001 octets"),
    "a mail with one flag less": (changed("Sent", 0, flags=r"\Seen $Forwarded"), r"\Answered"),
    "a mail in another folder": (
        {**OLD, "Sent": OLD["Sent"][1:], "a b": OLD["Sent"][:1]},
        "a b: 1 only in the new store: <1.sent.",
    ),
}


# --- same-state, mail-state ------------------------------------------------------------------------------------------


class Doveadm:
    """A stand-in in `directory`, of `version`."""

    def __init__(
        self, directory: Path, version: str, new: dict[str, list[Mail]], old: dict[str, list[Mail]] = OLD
    ) -> None:
        self.directory = directory
        (directory / "bin").mkdir()
        program = directory / "bin" / "doveadm"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {doveadm.__file__} "$@"\n', "utf-8")
        program.chmod(0o755)
        self.config = directory / "migration.conf"
        self.config.write_text("imapc_host = 192.0.2.10\n", "ascii")
        self.settings = {"version": version, "server": SERVER, "old": {USER: old}, "new": {USER: new}}

    def run(self, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        (self.directory / "stand-in").write_text(json.dumps(self.settings), "utf-8")
        environment = {
            "PATH": f"{self.directory}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "STAND_IN": str(self.directory / "stand-in"),
            "DOVEADM_CONFIG": str(self.config),
            "STATES": str(self.directory / "states"),
            "LC_ALL": "C.UTF-8",
        }
        return subprocess.run(
            [PLANS / script, *arguments], capture_output=True, text=True, timeout=30, check=False, env=environment
        )

    @property
    def kept(self) -> bool:
        """Whether the state of the old store was kept."""
        return (self.directory / "states" / USER).exists()


VERSIONS = ("2.3", "2.4")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_the_same_is_the_same(tmp_path: Path, version: str) -> None:
    site = Doveadm(tmp_path, version, OLD)
    done = site.run("same-state", SERVER, USER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4 folders, 13 messages, the same in both stores\n"
    assert site.kept
    again = site.run("same-state", "--since", SERVER, USER)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    # what came later is seen, and so is that nothing was kept
    site.settings["old"] = {USER: {**OLD, "INBOX": [*OLD["INBOX"], (9, "<late@x>", 5, "")]}}
    later = site.run("same-state", "--since", SERVER, USER)
    assert later.returncode == 1 and "+INBOX messages=9 uidnext=10 uidvalidity=1795479208 unseen=5" in later.stdout
    nobody = site.run("same-state", "--since", SERVER, "bob@example.org")
    assert nobody.returncode == 2 and "No such file" in nobody.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_store_sets_itself_is_nobodys_flag(tmp_path: Path, version: str) -> None:
    new = changed("INBOX", 0, flags=r"\Recent \Seen $HasNoAttachment")
    assert Doveadm(tmp_path, version, new).run("same-state", SERVER, USER).returncode == 0


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("version", VERSIONS)
def test_same_state_refuses_a_sync_that_copied(tmp_path: Path, version: str, sync: str) -> None:
    new, said = SYNCS[sync]
    site = Doveadm(tmp_path, version, new)
    done = site.run("same-state", SERVER, USER)
    assert (done.returncode, done.stderr) == (1, ""), done
    assert said in done.stdout
    assert not site.kept


@pytest.mark.parametrize("version", VERSIONS)
def test_same_state_refuses_other_uids(tmp_path: Path, version: str) -> None:
    done = Doveadm(tmp_path, version, changed("INBOX", 7, uid=99)).run("same-state", SERVER, USER)
    assert done.returncode == 1
    assert "<8.inbox.alice@example.org> (1008 octets, UID 8)" in done.stdout
    assert "INBOX: uidnext is 9 in the old store, 100 in the new one" in done.stdout


NOBODY = "192.0.2.10:143 is to be asked, and it asked nobody, so it read the new store"
OTHER_VERSIONS = {
    "2.5": NOBODY,
    "quiet": NOBODY,
    "imapc": "the new store is to be read, and it asked 192.0.2.10:143",
    "no json": "does not print JSON",
    "no size": "doveadm fetch: not understood",
    "odd number": "'9.' is no number",
    "empty": "shows no INBOX of alice@example.org",
    "silent": "does not print JSON",
    "half a list": "has 8 messages, 4 unseen, in INBOX and shows",
    "trouble": "doveadm(alice@example.org): Error: Mailbox INBOX: Some messages could not be read",
}


def test_each_version_that_is_played_is_tried() -> None:
    played = doveadm.__doc__ or ""
    for version in (*VERSIONS, *OTHER_VERSIONS):
        assert f"\n    {version} " in played


@pytest.mark.parametrize("copied", ["all", "nothing"])
@pytest.mark.parametrize("version", OTHER_VERSIONS)
def test_a_doveadm_of_another_kind_is_refused(tmp_path: Path, version: str, copied: str) -> None:
    """Also when the sync was right: nobody can tell."""
    site = Doveadm(tmp_path, version, OLD if copied == "all" else SYNCS["nothing"][0])
    done = site.run("same-state", SERVER, USER)
    assert done.returncode == 2, done
    assert OTHER_VERSIONS[version] in done.stderr
    assert done.stdout == "" and not site.kept
    if version != "imapc":  # which does not matter for the old store
        told = site.run("mail-state", SERVER, USER)
        assert (told.returncode, told.stdout) == (2, ""), told
        assert OTHER_VERSIONS[version] in told.stderr


def test_another_server_is_refused(tmp_path: Path) -> None:
    site = Doveadm(tmp_path, "2.4", OLD)
    for script in ("same-state", "mail-state"):
        done = site.run(script, "192.0.2.11:143", USER)
        assert (done.returncode, done.stdout) == (2, "")
        assert "192.0.2.11:143 is to be asked, and it asked 192.0.2.10:143" in done.stderr


def test_a_doveadm_that_is_not_there_is_refused(tmp_path: Path) -> None:
    site = Doveadm(tmp_path, "2.4", OLD)
    (tmp_path / "bin" / "doveadm").write_text("#!/bin/sh\nexit 127\n", "ascii")
    done = site.run("same-state", SERVER, USER)
    assert done.returncode == 2 and "exit 127" in done.stderr


@pytest.mark.parametrize(
    "text",
    ["imapc_user = bob\n", "  imapc_user=bob  \n", "imapc {\n  host = 192.0.2.10\n  user = bob\n}\n"],
)
def test_one_user_for_all_is_refused(tmp_path: Path, text: str) -> None:
    """Sync and verify would both read the mailbox of one user, and agree."""
    site = Doveadm(tmp_path, "2.4", OLD)
    site.config.write_text(f"imapc_host = 192.0.2.10\n{text}", "ascii")
    done = site.run("same-state", SERVER, USER)
    assert done.returncode == 2 and "imapc_user is bob for all users" in done.stderr
    site.config.write_text("# imapc_user = bob\nimapc_user = %u\nimapc {\n  user = %{user}\n}\n", "ascii")
    assert site.run("same-state", SERVER, USER).returncode == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_mail_state_tells_of_the_store_it_is_asked_for(tmp_path: Path, version: str) -> None:
    site = Doveadm(tmp_path, version, {"INBOX": OLD["INBOX"][:3]})
    old, new = site.run("mail-state", SERVER, USER), site.run("mail-state", "new", USER)
    assert (old.returncode, old.stderr, new.returncode, new.stderr) == (0, "", 0, "")
    assert old.stdout.splitlines() == [
        "Entw\u00fcrfe messages=1 uidnext=8 uidvalidity=1795479208 unseen=1",
        "INBOX messages=8 uidnext=9 uidvalidity=1795479208 unseen=4",
        "Sent messages=4 uidnext=5 uidvalidity=1795479208 unseen=0",
        "a b messages=0 uidnext=1 uidvalidity=1795479208 unseen=0",
    ]
    assert new.stdout == "INBOX messages=3 uidnext=4 uidvalidity=1795479208 unseen=1\n"


@pytest.mark.parametrize("arguments", [(), (USER,), (SERVER, ""), (SERVER, USER, USER), ("old", USER)])
def test_wrong_arguments(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    site = Doveadm(tmp_path, "2.4", OLD)
    for script in ("same-state", "mail-state"):
        done = site.run(script, *arguments)
        assert done.returncode == 64 and done.stderr.startswith(f"usage: {script}")


# --- same-mail -------------------------------------------------------------------------------------------------------


def same_mail(
    directory: Path, old: FakeImap, new: FakeImap, user: str = USER, *, compare: str = ""
) -> "subprocess.CompletedProcess[str]":
    config = directory / "same-mail.conf"
    config.write_text(
        f"[old]\nserver = {old.address}\nadmin = cyrus\npassword = secret\ntls = no\nprefix = INBOX.\n"
        f"[new]\nserver = {new.address}\nadmin = cyrus\npassword = secret\ntls = no\n{compare}",
        "ascii",
    )
    return subprocess.run(
        [PLANS / "same-mail", config, user], capture_output=True, text=True, timeout=30, check=False,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip


def ascii_names(folders: Folders) -> Folders:
    return {name.replace("\u00fc", "&APw-"): messages for name, messages in folders.items()}


def servers(new: Folders, manner: str = "", old_manner: str = "") -> tuple[FakeImap, FakeImap]:
    old = FakeImap({USER: prefixed(ascii_names(OLD)), "cyrus": {"INBOX": []}}, old_manner)
    return old, FakeImap({USER: ascii_names(new), "cyrus": {"INBOX": []}}, manner)


@pytest.mark.parametrize("manner", ["", "flags last"])
def test_same_mail_over_imap(tmp_path: Path, manner: str) -> None:
    """UIDs, keywords and the order of messages may differ."""
    other = {
        name: [
            (uid + 7, identity, size, flags.replace("$Forwarded", r"\Recent")) for uid, identity, size, flags in mails
        ]
        for name, mails in OLD.items()
    }
    other["INBOX"].reverse()
    old, new = servers(other, manner)
    with old, new:
        done = same_mail(tmp_path, old, new)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4 folders, 13 messages, the same in both stores\n"


ALL = "[compare]\nkeywords = yes\ndates = yes\n"
NOTHING_MORE = ("", "[compare]\n", "[compare]\nkeywords = no\ndates = no\n")


@pytest.mark.parametrize("manner", ["", "own zone", "of the copy", "no dates", "odd dates"])
@pytest.mark.parametrize("compare", [ALL, *NOTHING_MORE], ids=repr)
def test_same_mail_compares_when_messages_arrived_if_it_is_told_to(tmp_path: Path, compare: str, manner: str) -> None:
    old, new = servers(OLD, manner)
    with old, new:
        done = same_mail(tmp_path, old, new, compare=compare)
    if compare != ALL or manner in ("", "own zone"):
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "4 folders, 13 messages, the same in both stores\n"
    elif manner == "of the copy":
        assert done.returncode == 1
        first = "<1.inbox.alice@example.org> (1001 octets, arrived {}"
        assert f"INBOX: 8 only in the old store: {first.format('2011-03-05 02:04:41 UTC)')}" in done.stdout
        assert f"INBOX: 8 only in the new store: {first.format('2026-11-30 19:18:47 UTC)')}" in done.stdout
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert ("not understood" if manner == "no dates" else "no INTERNALDATE: b'2011-03-05T02:04:") in done.stderr


@pytest.mark.parametrize(
    "flags, said",
    [
        (r"\Answered \Seen $Forwarded", None),
        (r"\Seen $forwarded \Answered \Recent $HasAttachment", None),
        (r"\Answered \Seen", r"$forwarded \Answered \Seen in the old store, \Answered \Seen in the new one"),
        (r"\Answered \Seen $Forwarded NonJunk", r"$forwarded \Answered \Seen nonjunk in the new one"),
    ],
)
def test_same_mail_compares_keywords_if_it_is_told_to(tmp_path: Path, flags: str, said: str | None) -> None:
    old, new = servers(changed("Sent", 2, flags=flags))
    with old, new:
        for compare in NOTHING_MORE:
            assert same_mail(tmp_path, old, new, compare=compare).returncode == 0
        done = same_mail(tmp_path, old, new, compare=ALL)
    assert (done.returncode, done.stderr) == (int(said is not None), "")
    assert (said or "the same in both stores") in done.stdout


@pytest.mark.parametrize(
    "folder, mails, said",
    [
        ("Junk", [], None),
        ("Trash", [], "Trash: only in the new store, with 0 messages"),
        ("Junk", OLD["INBOX"], "Junk: only in the new store, with 8 messages"),
    ],
)
def test_a_folder_that_the_new_store_makes_is_no_difference_while_it_is_empty(
    tmp_path: Path, folder: str, mails: list[Mail], said: str | None
) -> None:
    old, new = servers({**OLD, folder: mails})
    with old, new:
        assert same_mail(tmp_path, old, new).returncode == 1
        done = same_mail(tmp_path, old, new, compare="[compare]\nmade_by_new = Drafts, Junk, INBOX, a b\n")
    assert (done.returncode, done.stderr) == (int(said is not None), "")
    assert (said or "4 folders, 13 messages, the same in both stores") in done.stdout


@pytest.mark.parametrize("sync", ["nothing", "an empty folder less", "empty folders"])
def test_no_folder_of_the_old_store_is_one_that_the_new_one_makes(tmp_path: Path, sync: str) -> None:
    copied, said = SYNCS[sync]
    old, new = servers(copied)
    with old, new:
        done = same_mail(tmp_path, old, new, compare="[compare]\nmade_by_new = INBOX, Sent, a b\n")
    assert done.returncode == 1 and said in done.stdout


@pytest.mark.parametrize("sync", SYNCS)
def test_same_mail_refuses_a_sync_that_copied(tmp_path: Path, sync: str) -> None:
    copied, said = SYNCS[sync]
    old, new = servers(copied)
    with old, new:
        done = same_mail(tmp_path, old, new)
    if sync == "no mailbox":
        assert done.returncode == 2 and f"shows no INBOX of {USER}" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (1, ""), done
        assert said in done.stdout


@pytest.mark.parametrize("where", ["old", "new"])
@pytest.mark.parametrize(
    "manner, said",
    [
        ("no size", "not understood"),
        ("no flags", "not understood"),
        ("fewer", "8 messages, of 7 was told"),
        ("twice", "not understood"),
        ("odd list", "LIST: "),
        ("no folders", "shows no INBOX"),
        ("preauth", "asks for no login"),
    ],
)
def test_a_server_of_another_kind_is_refused(tmp_path: Path, where: str, manner: str, said: str) -> None:
    old, new = servers(OLD, manner if where == "new" else "", manner if where == "old" else "")
    with old, new:
        done = same_mail(tmp_path, old, new)
    assert done.returncode == 2, done
    assert said in done.stderr and done.stdout == ""


def test_one_server_that_is_both_is_refused(tmp_path: Path) -> None:
    with FakeImap({USER: prefixed(ascii_names(OLD))}) as both:
        done = same_mail(tmp_path, both, both)
    assert done.returncode == 2 and "old and new are the same server" in done.stderr


def test_who_may_not_log_in_is_refused(tmp_path: Path) -> None:
    old, new = servers(OLD)
    with old, new:
        done = same_mail(tmp_path, old, new, "bob@example.org")
    assert done.returncode == 2 and "who are you?" in done.stderr


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "'old'"),
        ("[old]\nserver = 127.0.0.1:1\npassword = x\n", "'new'"),
        ("[old]\nserver = 127.0.0.1\npassword = x\n[new]\nserver = a:1\npassword = x\n", "needs server = HOST:PORT"),
        ("[old]\nserver = 127.0.0.1:1\n[new]\nserver = a:1\npassword = x\n", "needs server = HOST:PORT"),
        ("[old]\nserver = 127.0.0.1:1\npasswort = x\n[new]\n", "unknown: passwort"),
        ("[old]\nserver = 127.0.0.1:1\npassword = x\ntls = maybe\n[new]\nserver = 127.0.0.1:1\n", "[old] needs"),
        ("[old]\nserver = 127.0.0.1:1\npassword = x\n[new]\nserver = 127.0.0.1:1\npassword = x\n", "refused"),
        ("[old]\n[new]\n[compare]\ndate = yes\n", "[compare]: unknown: date"),
        ("[old]\n[new]\n[compare]\ndates = perhaps\n", "Not a boolean: perhaps"),
        ("[old]\n[new]\n[Compare]\ndates = yes\n", "unknown: [Compare]"),
    ],
)
def test_a_configuration_that_says_not_enough_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "conf").write_text(text, "ascii")
    done = subprocess.run(
        [PLANS / "same-mail", tmp_path / "conf", USER], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2 and said in done.stderr, done


# --- mbsync-user -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, option",
    [("isync 1.4.4", "SSLType"), ("isync 1.4", "SSLType"), ("isync 1.5.1", "TLSType"), ("isync 1.5", "TLSType"),
     ("isync 1.3.0", None), ("isync 1.6.0", None), ("isync 1.50", None), ("isync 2.0", None), ("mbsync 1.5", None),
     ("", None)],
)  # fmt: skip
def test_mbsync_of_another_version_is_refused(tmp_path: Path, said: str, option: str | None) -> None:
    program = tmp_path / "bin" / "mbsync"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "{said}" && exit\ncat "$2" >{tmp_path}/used\n', "ascii"
    )
    program.chmod(0o755)
    (tmp_path / "passwords").write_text("alice:secret\n", "ascii")
    environment = {
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "PASSWORDS": str(tmp_path / "passwords"),
        "STATES": str(tmp_path / "states"),
    }
    done = subprocess.run(
        [PLANS / "mbsync-user", "192.0.2.10:143", "192.0.2.20:143", "alice"],
        capture_output=True, text=True, timeout=20, check=False, env=environment,
    )  # fmt: skip
    if option is None:
        assert done.returncode != 0 and "neither 1.4 nor 1.5" in done.stderr
        assert not (tmp_path / "used").exists()
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "used").read_text("ascii").count(f"\n{option} STARTTLS\n") == 2


@pytest.mark.parametrize("status", [1, 137])
def test_mbsync_that_fails_is_a_sync_that_failed(tmp_path: Path, status: int) -> None:
    program = tmp_path / "bin" / "mbsync"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "isync 1.4.4" && exit\nexit {status}\n', "ascii")
    program.chmod(0o755)
    (tmp_path / "passwords").write_text("alice:secret\n", "ascii")
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "PASSWORDS": str(tmp_path / "passwords"),
                   "STATES": str(tmp_path / "states")}  # fmt: skip
    done = subprocess.run(
        [PLANS / "mbsync-user", "192.0.2.10:143", "192.0.2.20:143", "alice"],
        capture_output=True, text=True, timeout=20, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == status
