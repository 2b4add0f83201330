# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible manages users, and `lmtp-proxyctl move` moves them: neither undoes what the other has done."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.ctl import controlled, ctl
from tests.support.proxy import ProxyProcess

from .requirements import ANSIBLE, missing_for_ansible

ALICE, BOB, CAROL, ZOE = (f"{name}@example.org" for name in ("alice", "bob", "carol", "zoe"))
BLOCK = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.blockinfile:
        path: {path}
        block: |2
            alice@example.org: old
            bob@example.org: old
"""
FILE = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        dest: {path}
        content: |
          alice@example.org: old
          bob@example.org: old
"""


@pytest.fixture
def stores() -> Iterator[tuple[FakeBackend, FakeBackend]]:
    if reason := missing_for_ansible():
        pytest.skip(reason)
    with FakeBackend() as old, FakeBackend() as new:
        yield old, new


def play(proxy: ProxyProcess, text: str, path: str) -> bool:
    """Whether the play has changed anything."""
    playbook = Path(proxy.directory) / "play.yml"
    settings = playbook.with_name("ansible.cfg")
    settings.touch()  # and none of this machine
    playbook.write_text(text.format(path=path))
    interpreter = f"ansible_python_interpreter={ANSIBLE.with_name('python')}"
    command = [str(ANSIBLE), "-i", "localhost,", "-c", "local", "-e", interpreter, str(playbook)]
    environment = {**os.environ, "ANSIBLE_HOME": f"{proxy.directory}/ansible", "ANSIBLE_NOCOLOR": "1"}
    environment |= {"LC_ALL": "C.UTF-8", "ANSIBLE_LOCALHOST_WARNING": "0", "ANSIBLE_CONFIG": str(settings)}
    done = subprocess.run(command, env=environment, cwd=proxy.directory, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return "changed=1" in done.stdout


def move(proxy: ProxyProcess, user: str, backend: str) -> None:
    ended = ctl("-c", proxy.config_path, "move", user, backend)
    assert ended.status == 0, ended


def store_of(proxy: ProxyProcess, new: FakeBackend, user: str) -> str:
    """Where mail for them arrives."""
    before = len(new.transactions())
    with proxy.client() as client:
        assert client.deliver("s@x", [user]).verdict(0).positive
        client.quit()
    return "new" if len(new.transactions()) > before else "old"


def test_the_next_play_leaves_a_new_user_where_move_has_put_them(stores: tuple[FakeBackend, FakeBackend]) -> None:
    """blockinfile replaces all between its two comments: what is moved stands below them."""
    old, new = stores
    with controlled({"old": old, "new": new}, {CAROL: "old"}, fallback_backend="old") as proxy:
        assert play(proxy, BLOCK, proxy.config_path)
        text = Path(proxy.config_path).read_text()
        assert text.index(CAROL) < text.index("# BEGIN ANSIBLE") < text.index(BOB) < text.index("# END ANSIBLE")
        assert "2 added" in proxy.signal_reload()
        move(proxy, ZOE, "new")
        assert Path(proxy.config_path).read_text() != text and store_of(proxy, new, ZOE) == "new"
        assert not play(proxy, BLOCK, proxy.config_path), "there is nothing of it to put right"
        assert "active" in proxy.signal_reload()
        assert [store_of(proxy, new, user) for user in (ZOE, ALICE, CAROL)] == ["new", "old", "old"]


def test_a_file_of_the_tools_own(stores: tuple[FakeBackend, FakeBackend]) -> None:
    """Each owns its file: a new user is no concern of the play."""
    old, new = stores
    users_file: list[object] = ["ansible.users", "moved.users"]
    proxy = controlled({"old": old, "new": new}, {}, fallback_backend="old", users_file=users_file)
    tool, moved = (Path(proxy.directory) / str(name) for name in users_file)
    moved.write_text("")
    assert play(proxy, FILE, str(tool))
    with proxy:
        move(proxy, ZOE, "new")
        assert moved.read_text() == f"{ZOE}: new\n" and not play(proxy, FILE, str(tool))
        assert "active" in proxy.signal_reload()
        assert [store_of(proxy, new, user) for user in (ZOE, ALICE)] == ["new", "old"]
