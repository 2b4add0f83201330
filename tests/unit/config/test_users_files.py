# SPDX-License-Identifier: GPL-3.0-or-later
"""Users in files beside the configuration: which files are meant, what is read of them, and who writes which."""

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmtp_proxy.config import sources, users_files, yaml_text
from lmtp_proxy.config.difference import compare_users, too_many_removed
from lmtp_proxy.config.file import Change, change_users
from lmtp_proxy.config.loading import LARGE, load
from lmtp_proxy.config.read import Config, ConfigError, LargeConfig, load_config
from lmtp_proxy.config.users_files import digest_on_disk
from lmtp_proxy.config.values import MaxRemoved

TOP = (
    "config:\n  socket: /run/mail\n  users_file: {}\n"
    "backends:\n  old: {{socket: /run/old}}\n  new: {{socket: /run/new}}\n"
)

Site = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    def make(files: dict[str, str], named: str = "users.d", users: str = "") -> Path:
        """The configuration, with these files beside it."""
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        main = tmp_path / "proxy.yml"
        main.write_text(TOP.format(named) + users)
        return main

    return make


def placed(config: Config) -> dict[str, tuple[str, str, int]]:
    """Backend, file and line of each user."""
    found = {}
    for user, name in config.users.items():
        path, line = config.place(user)
        found[user] = (name, os.path.relpath(path, os.path.dirname(config.path)), line)
    return found


def errors(main: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(str(main))
    return [line.replace(f"{main.parent}/", "") for line in caught.value.errors]


def change(path: Path, *users: str, to: str = "new") -> Change:
    return change_users(str(path), users, to, deadline=time.monotonic() + 5, waiting=lambda what: None)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_files_in_order_and_a_directory_by_name(site: Site) -> None:
    main = site(
        {
            "tool.yml": "---\n# of the directory service\nalice@x: old\n",
            "more/20.users": "carol@x: new\n",
            "more/10.yml": "users:\n  bob@x: old\n  Dora@x: 'hold'\n",
            "more/.hidden.yml": "x: y\n",
            "more/10.yml~": "x: y\n",
            "more/README": "x: y\n",
            "last": "",
        },
        "[tool.yml, more, last]",
        "users:\n  erin@x: new\n",
    )
    config = load_config(str(main))
    assert placed(config) == {
        "alice@x": ("old", "tool.yml", 3),
        "bob@x": ("old", "more/10.yml", 2),
        "dora@x": ("hold", "more/10.yml", 3),
        "carol@x": ("new", "more/20.users", 1),
        "erin@x": ("new", "proxy.yml", 8),
    }
    names = [os.path.relpath(file.path, main.parent) for file in config.files]
    assert names == ["proxy.yml", "tool.yml", "more/10.yml", "more/20.users", "last"]
    assert config.users_per_backend == {"new": 2, "old": 2, "hold": 1}
    assert config.notes == ()


@pytest.mark.parametrize(
    "text",
    [
        *("a@x: old\nb@x: new\n", "b@x: new\na@x: old", "users:\n  a@x: old\n  b@x: new\n", "{a@x: old, b@x: new}\n"),
        *("\ufeffa@x: old\r\nb@x: new\r\n", "# c\n---\na@x: old\nb@x: new\n", "  a@x: old\n  b@x: new\n"),
        *("users: {a@x: old, b@x: new}\n", '"a@\\u0078": old\nb@x: &n new\n', "a@x: old\nA@X: old\nb@x: new\n"),
        *("---\nusers:\n- x\n".replace("- x", "  a@x: old\n  b@x: new"), "b@x: new\n...\n".replace("b", "a@x: old\nb")),
    ],
)
def test_any_form(site: Site, text: str) -> None:
    main = site({"u": text}, "u")
    assert load_config(str(main)).users == {"a@x": "old", "b@x": "new"}
    assert load(str(main)).users == {"a@x": "old", "b@x": "new"}, "by a process of its own"


def test_a_user_who_is_called_users(site: Site) -> None:
    assert load_config(str(site({"u": "users: old\nconfig: new\n"}, "u"))).users == {"users": "old", "config": "new"}


@pytest.mark.parametrize("text", ["", "# nobody yet\n", "---\n", "\n\n", "users:\n", "{}\n", "users: {}\n", "\ufeff"])
def test_a_file_without_users(site: Site, text: str) -> None:
    assert load_config(str(site({"u": text}, "u"))).users == {}


def test_an_empty_directory_is_a_note(site: Site, tmp_path: Path) -> None:
    (tmp_path / "users.d").mkdir()
    config = load_config(str(site({})))
    assert config.users == {}
    assert config.notes == (
        f"{config.path}:3: config.users_file: {tmp_path}/users.d holds no file that ends with .yml or .users",
    )


@pytest.mark.parametrize("plain", [True, False])
def test_who_is_in_two_files_is_an_error_that_names_both(site: Site, plain: bool) -> None:
    quote = "" if plain else "&x "
    main = site(
        {"a": f"# a\n\nalice@x: {quote}old\n", "b": f"bob@x: {quote}old\nALICE@x: old\nerin@x: old\n"},
        "[a, b]",
        "users:\n  erin@x: old\n",
    )
    assert errors(main) == [
        "b:2: ALICE@x: stands in a, too, on line 3 as alice@x: take one of the two out",
        "b:3: erin@x: stands in proxy.yml, too, on line 8: take one of the two out",
    ]


@pytest.mark.parametrize("name, plain", [("olt", True), ("", False), ("|\n  x", False)])
def test_also_if_the_first_has_another_error(site: Site, name: str, plain: bool) -> None:
    """Which the second is not to wait for: they would be found one by one."""
    quote = "" if plain else "&x "
    found = errors(site({"a": f"alice@x: {name}\n", "b": f"bob@x: {quote}old\nALICE@x: old\n"}, "[a, b]"))
    assert [error.split(": ", 2)[:2] for error in found] == [["a:1", "alice@x"], ["b:2", "ALICE@x"]]
    assert "ALICE@x: stands in a, too, on line 1 as alice@x: take one of the two out" in found[1]


def test_every_error_names_its_file_and_line(site: Site) -> None:
    main = site(
        {
            "users.d/a.yml": "alice@x: olt\nbob@x:\n",
            "users.d/b.yml": "users:\n  carol@x: [old]\nbackends: {}\n",
            "users.d/c.yml": "- dora\n",
            "users.d/d.yml": "dora@x: old\nerin@x: n",
            "users.d/e.yml": 'erin@x: "',
        }
    )
    assert errors(main) == [
        'users.d/a.yml:1: alice@x: there is no backend "olt": did you mean old?',
        "users.d/a.yml:2: bob@x: has no value: write the name of a backend, reject or hold",
        "users.d/b.yml:2: users.carol@x: must be the name of a backend, reject or hold",
        "users.d/b.yml:3: backends: unknown key",
        "users.d/c.yml:1: must hold `USER: BACKEND` lines",
        'users.d/d.yml:2: erin@x: there is no backend "n": define it under backends',
        "users.d/e.yml:1: YAML error: while scanning a quoted scalar, found unexpected end of stream",
    ]


@pytest.mark.parametrize("lines", ["  a@x: old\n", "  a@x: [old]\n"])
def test_what_stands_beside_the_users_is_an_error(site: Site, lines: str) -> None:
    """A whole configuration is no file of users."""
    main = site({"u": f"users:\n{lines}config:\n  socket: /x\n"}, "u")
    assert errors(main)[-1] == "u:3: config: unknown key"


def test_many_errors_are_cut_once_for_all_files(site: Site) -> None:
    lines = "".join(f"u{number}@x: olt\n" for number in range(15))
    found = errors(site({"a": lines, "b": lines.replace("u", "v")}, "[a, b]"))
    assert len(found) == 21 and found[-1] == "proxy.yml: and 10 more errors"
    assert found[19].startswith("b:5: v4@x: ")


def test_a_file_that_cannot_be_read_is_one_clear_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "users.d").mkdir()
    (tmp_path / "users.d" / "dir.yml").mkdir()
    (tmp_path / "users.d" / "gone.yml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "users.d" / "pipe.users")
    main = site({}, "[none.yml, users.d, proxy.yml]")
    assert errors(main) == [
        "proxy.yml:3: config.users_file: proxy.yml is this configuration, whose users count in any case: take it out"
    ]
    main = site({}, "[none.yml, users.d]")
    assert errors(main) == [
        "none.yml: cannot be read: No such file or directory",
        "users.d/dir.yml: cannot be read: Is a directory",
        "users.d/gone.yml: cannot be read: No such file or directory",
        "users.d/pipe.users: cannot be read: it is no regular file",
    ]
    assert errors(site({}, '""')) == [
        "proxy.yml:3: config.users_file: must be the path of a file or a directory, not an empty text"
    ]


def test_a_file_is_read_once_whatever_it_is_called(site: Site, tmp_path: Path) -> None:
    (tmp_path / "users.d").mkdir()
    (tmp_path / "users.d" / "link.yml").symlink_to("a.yml")
    (tmp_path / "users.d" / "self.yml").symlink_to("../proxy.yml")
    main = site({"users.d/a.yml": "alice@x: old\n"}, "[users.d, users.d/a.yml, ./users.d/../users.d/a.yml]")
    config = load_config(str(main))
    assert placed(config) == {"alice@x": ("old", "users.d/a.yml", 1)}
    assert config.notes == (f"{main}:3: config.users_file: {tmp_path}/users.d/a.yml is named twice, and read once",)


def test_the_directory_of_the_configuration_itself(site: Site) -> None:
    assert load_config(str(site({"a.users": "alice@x: old\n"}, "."))).users == {"alice@x": "old"}


def test_a_directory_that_changes_between_two_looks_is_read_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = site({"users.d/a.yml": "alice@x: old\n", "users.d/b.yml": "bob@x: old\n"})
    real = yaml_text.read_source
    edits: list[Callable[[], object]] = [
        lambda: (tmp_path / "users.d" / "b.yml").unlink(),
        lambda: (tmp_path / "users.d" / "c.yml").write_text("carol@x: new\n"),
    ]

    def read(path: str) -> yaml_text.Source:
        if path.endswith("a.yml") and edits:
            edits.pop(0)()
        return real(path)

    monkeypatch.setattr(sources, "read_source", read)
    config = load_config(str(main))
    assert config.users == {"alice@x": "old", "carol@x": "new"} and edits == []
    assert config.digest == digest_on_disk(str(main), config.users_file or ())

    edits += [lambda: (tmp_path / "users.d" / f"{time.monotonic()}.yml").write_text("")] * 4
    assert errors(main) == [
        "proxy.yml: config.users_file: files came or went each time they were read: try again when that is over"
    ]


def test_the_digest_is_that_of_all_files_and_sha256sum_says_it(site: Site, tmp_path: Path) -> None:
    main = site({"users.d/a.yml": "alice@x: old\n", "users.d/b.yml": "bob@x: old\n"})
    config = load_config(str(main))
    names = [main, tmp_path / "users.d" / "a.yml", tmp_path / "users.d" / "b.yml"]
    said = subprocess.run(["sha256sum", *map(str, names)], capture_output=True, check=True).stdout
    assert config.digest == hashlib.sha256(said).hexdigest() == digest_on_disk(str(main), config.users_file or ())
    seen = {config.digest}
    names[2].write_text("bob@x: new\n")
    seen.add(load_config(str(main)).digest)
    names[2].rename(tmp_path / "users.d" / "c.yml")
    seen.add(load_config(str(main)).digest)
    (tmp_path / "users.d" / "d.yml").touch()
    seen.add(load_config(str(main)).digest)
    assert len(seen) == 4
    (tmp_path / "users.d" / "d.yml").unlink()
    names[1].unlink()
    assert digest_on_disk(str(main), ("/none",)) is None
    main.write_text(TOP.format("[]"))
    assert load_config(str(main)).digest == hashlib.sha256(main.read_bytes()).hexdigest()


def test_the_time_is_that_of_the_last_one_changed(site: Site, tmp_path: Path) -> None:
    main = site({"users.d/a.yml": "alice@x: old\n"})
    os.utime(main, (5, 5))
    os.utime(tmp_path / "users.d" / "a.yml", (7, 7))
    assert load_config(str(main)).modified == 7


def test_sizes_add_up(site: Site) -> None:
    lines = "".join(f"user{number:05}@example.org: old\n" for number in range(20_000))
    main = site({"a": lines, "b": lines.replace("user", "more")}, "[a, b]")
    assert len(lines) < LARGE < 2 * len(lines)
    with pytest.raises(LargeConfig):
        load_config(str(main), at_most=LARGE)
    config = load(str(main))
    assert len(config.users) == 40_000
    assert config.place("more00003@example.org") == (f"{main.parent}/b", 4)
    main.write_text(TOP.format("a"))
    assert len(load_config(str(main), at_most=LARGE).users) == 20_000


def test_all_files_together_have_a_limit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    main = site({"a": "alice@x: old\n", "b": "bob@x: old\n"}, "[a, b]")
    monkeypatch.setattr(sources, "MAX_OCTETS", main.stat().st_size + 20)
    assert errors(main) == [f"b: is too much: all files may have {main.stat().st_size + 20} octets together"]


def test_who_is_removed_is_counted_over_all_files(site: Site, tmp_path: Path) -> None:
    lines = "".join(f"u{number:02}@x: old\n" for number in range(30))
    main = site({"a": lines, "b": lines.replace("u", "v")}, "[a, b]")
    before = load_config(str(main))
    (tmp_path / "b").write_text("")
    users = compare_users(before.users, load_config(str(main)).users)
    refused = too_many_removed(before, users)
    assert refused is not None
    assert refused.startswith(f"{tmp_path}/b: users: would remove 30 of 60 users (v00@x, v01@x, v02@x, ...), more than")
    assert before.max_removed == MaxRemoved(10, percent=True)


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "place"),
    [("[d, a]", "a"), ("[a, d]", "a"), ("d", "proxy.yml"), ("[a, d/b.yml]", "d/b.yml"), ("[]", "proxy.yml")],
)
def test_new_users_go_to_the_last_file(site: Site, named: str, place: str) -> None:
    main = site({"a": "", "d/b.yml": ""}, named)
    result = change(main, "zoe@x")
    assert placed(load_config(str(main)))["zoe@x"][:2] == ("new", place)
    assert result.files == (str(main.parent / place),)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "zoe@x: new\n"),
        ("# mine", "# mine\nzoe@x: new"),
        ("---\n", "---\nzoe@x: new\n"),
        ("alice@x: old # 1\n# end\n", "alice@x: old # 1\n# end\nzoe@x: new\n"),
        ("  alice@x: old\n", "  alice@x: old\n  zoe@x: new\n"),
        ("{}\n", "{zoe@x: new}\n"),
        ('{"alice@x": "old"}\n', '{"alice@x": "old", "zoe@x": "new"}\n'),
        ("users:\n", "users:\n  zoe@x: new\n"),
        ("users:\n    alice@x: old\n", "users:\n    alice@x: old\n    zoe@x: new\n"),
        ("alice@x: old\r\n", "alice@x: old\r\nzoe@x: new\r\n"),
        (
            "# BEGIN ANSIBLE MANAGED BLOCK\nalice@x: old\n# END ANSIBLE MANAGED BLOCK\n",
            "# BEGIN ANSIBLE MANAGED BLOCK\nalice@x: old\n# END ANSIBLE MANAGED BLOCK\nzoe@x: new\n",
        ),
    ],
)
def test_a_new_line(site: Site, tmp_path: Path, before: str, after: str) -> None:
    main = site({}, "a")
    (tmp_path / "a").write_bytes(before.encode())
    change(main, "zoe@x")
    assert (tmp_path / "a").read_bytes().decode() == after
    assert load_config(str(main)).users["zoe@x"] == "new"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("alice@x: old # 1\nbob@x: old\n", "alice@x: new # 1\nbob@x: old\n"),
        ("bob@x: old\nAlice@x:   'old'", "bob@x: old\nAlice@x:   'new'"),
        ("{bob@x: old, alice@x: old}", "{bob@x: old, alice@x: new}"),
        ("---\nusers:\n  alice@x: old\n", "---\nusers:\n  alice@x: new\n"),
        ("bob@x: &o old\nalice@x: *o\n", "bob@x: &o old\nalice@x: new\n"),
    ],
)
def test_a_line_is_changed_where_it_stands(site: Site, tmp_path: Path, before: str, after: str) -> None:
    main = site({"d/a.yml": before}, "[d, last]")
    (tmp_path / "last").write_text("")
    was = main.read_bytes()
    result = change(main, "alice@x")
    assert (result.previous, result.changed) == ({"alice@x": "old"}, True)
    assert (tmp_path / "d" / "a.yml").read_text() == after
    assert main.read_bytes() == was and (tmp_path / "last").read_text() == ""
    assert result.undo() and (tmp_path / "d" / "a.yml").read_text() == before


def test_a_link_the_mode_and_the_owner_stay(site: Site, tmp_path: Path) -> None:
    main = site({"real/a": "alice@x: old\n"}, "a")
    real = tmp_path / "real" / "a"
    (tmp_path / "a").symlink_to("real/a")
    if os.geteuid() == 0:
        os.chown(real, 1234, 2345)
    real.chmod(0o640)
    old = real.stat()
    change(main, "alice@x")
    new = real.stat()
    assert (tmp_path / "a").is_symlink() and real.read_text() == "alice@x: new\n"
    assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
    assert sorted(os.listdir(tmp_path / "real")) == ["a"]


def test_users_of_several_files(site: Site, tmp_path: Path) -> None:
    main = site({"a": "alice@x: old\n", "b": "bob@x: old\n"}, "[a, b]", "users:\n  carol@x: old\n")
    before = {path: path.read_bytes() for path in (main, tmp_path / "a", tmp_path / "b")}
    result = change(main, "bob@x", "zoe@x", "carol@x", "alice@x")
    assert result.previous == {"bob@x": "old", "zoe@x": None, "carol@x": "old", "alice@x": "old"}
    assert list(result.previous) == ["bob@x", "zoe@x", "carol@x", "alice@x"]
    assert load_config(str(main)).users == dict.fromkeys(("alice@x", "bob@x", "carol@x", "zoe@x"), "new")
    assert result.files == (str(main), str(tmp_path / "a"), str(tmp_path / "b"))
    assert result.after == load_config(str(main)).digest != result.before
    assert result.undo() is True
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "proxy.yml"]


def test_all_or_nothing(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two files cannot be renamed: the first is put back."""
    main = site({"a": "alice@x: old\n", "b": "bob@x: old\n"}, "[a, b]")
    real = os.rename

    def rename(source: str, target: str) -> None:
        if target.endswith("/b"):
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(ConfigError, match=f"^{tmp_path}/b: cannot be changed: Permission denied"):
        change(main, "alice@x", "bob@x")
    assert (tmp_path / "a").read_text() == "alice@x: old\n" and (tmp_path / "b").read_text() == "bob@x: old\n"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "proxy.yml"]


def test_undo_leaves_all_alone_if_one_was_written_since(site: Site, tmp_path: Path) -> None:
    main = site({"a": "alice@x: old\n", "b": "bob@x: old\n"}, "[a, b]")
    result = change(main, "alice@x", "bob@x")
    (tmp_path / "b").write_text("bob@x: hold\n")
    assert result.undo() is False
    assert (tmp_path / "a").read_text() == "alice@x: new\n"


@pytest.mark.parametrize("place", ["a", "b", "proxy.yml"])
def test_an_edit_by_others_is_not_lost(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Just before the rename, in the file that is changed or in another."""
    main = site({"a": "alice@x: old\n", "b": "bob@x: old\n"}, "[a, b]")
    real, todo = os.fsync, [tmp_path / place]

    def fsync(handle: int) -> None:
        real(handle)
        if todo:
            path = todo.pop()
            path.write_text(path.read_text() + "# by hand\n")

    monkeypatch.setattr(os, "fsync", fsync)
    assert change(main, "alice@x").changed and not todo
    assert (tmp_path / place).read_text().endswith("# by hand\n")
    assert load_config(str(main)).users == {"alice@x": "new", "bob@x": "old"}


def test_an_edit_that_makes_no_sense_is_named_by_its_file(site: Site, tmp_path: Path) -> None:
    main = site({"a": "bob@x: &o old\nalice@x: *o\n"}, "a")
    with pytest.raises(ConfigError) as caught:
        change(main, "bob@x")
    assert caught.value.errors[0].startswith(f"{tmp_path}/a:1: users.bob@x has an anchor (&o), whose aliases (line 2)")
    (tmp_path / "a").write_text("alice@x: old\n")
    with pytest.raises(ConfigError) as caught:
        change(main, "a\tb")
    assert caught.value.errors == (
        f"{tmp_path}/a: would not load with this change: a\\tb: holds a control character, which no address can",
    )


def test_where_new_users_go() -> None:
    assert users_files.for_new_users(()) is None
    assert users_files.for_new_users(("/etc/none", "/etc")) == "/etc/none"
