# SPDX-License-Identifier: GPL-3.0-or-later
"""A loading process: that it gives what load_config gives, and what is said when it is not what it should be.

Programs that are not Python at all stand in for it where it has to fail.
"""

import gc
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lmtp_proxy.config import loading
from lmtp_proxy.config.loading import LARGE, LoadingProcess, LoadOrder, load
from lmtp_proxy.config.read import ConfigError, load_config
from lmtp_proxy.routing.static_table import StaticTable
from tests.support.patience import SOON

TEXT = "config: {socket: /s}\nbackends: {old: {socket: /o, user: u, password: p}}\nusers:\n"


@pytest.fixture
def large(tmp_path: Path) -> str:
    path = tmp_path / "large.yml"
    path.write_text(TEXT + "".join(f"  user{number}@example.test: old\n" for number in range(40_000)))
    assert path.stat().st_size > LARGE
    return str(path)


def test_it_gives_what_load_config_gives(large: str) -> None:
    before = descriptors()
    config = load(large)
    assert config.users.handles
    assert config == load_config(large)
    assert (config.digest, config.users_per_backend) == (load_config(large).digest, {"old": 40_000})
    assert config.users.line("user39999@example.test") == 40_003
    config.users.close()
    assert len(descriptors()) <= len(before) + 1  # of the map, which goes with the object
    del config
    assert descriptors() == before


def test_its_errors_are_those_of_load_config(large: str) -> None:
    with open(large, "a") as file:
        file.write("  zoe: nobody\n  user7@example.test: old\n")
    before = descriptors()
    with pytest.raises(ConfigError) as found:
        load(large)
    with pytest.raises(ConfigError) as wanted:
        load_config(large)
    assert found.value.errors == wanted.value.errors
    assert len(found.value.errors) == 2
    assert descriptors() == before


@pytest.mark.parametrize("old", [StaticTable(), StaticTable({"zoe": "old", "user7@example.test": "new"}), None])
def test_it_compares_with_the_table_in_force(large: str, old: StaticTable | None) -> None:
    process = LoadingProcess(large, old)
    try:
        octets = Path(f"/proc/self/fd/{process.pipe}").read_bytes()
        users = process.result(octets, lambda _: pytest.fail("it is done")).users
    finally:
        process.close(lambda _: os.waitpid(process.pid, 0)[1])
    counts = [sum(group["count"] for group in users[kind]) for kind in ("added", "removed", "moved")]
    assert users["users"] == 40_000
    assert counts == ([0, 0, 0] if old is None else [39_999, 1, 1] if len(old) else [40_000, 0, 0])


def test_a_small_file_is_loaded_in_the_same_way(tmp_path: Path) -> None:
    small = tmp_path / "small.yml"
    small.write_text(TEXT + "  alice: old\n")
    config = load(str(small))
    assert not config.users.handles
    assert config == load_config(str(small))


@pytest.mark.parametrize("path", ["none.yml", "a\0b"])
def test_what_is_no_file_is_refused_as_by_load_config(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError) as found:
        load(str(tmp_path / path))
    with pytest.raises(ConfigError) as wanted:
        load_config(str(tmp_path / path))
    assert found.value.errors == wanted.value.errors


@pytest.mark.parametrize("size, nice", [(LARGE, "0"), (LARGE + 1, "10")])
def test_only_a_large_file_has_to_wait_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, nice: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$4" > {tmp_path}/order\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    (tmp_path / "c.yml").write_text("#" * size)
    process = LoadingProcess(str(tmp_path / "c.yml"), None)
    os.read(process.pipe, 1)
    process.close(lambda _: os.waitpid(process.pid, 0)[1])
    assert LoadOrder.read((tmp_path / "order").read_text()).nice == int(nice)


def test_a_sandbox_that_forbids_nice_does_not_forbid_a_large_file(
    large: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sandboxed.py").write_text(
        "import os, sys\n"
        "def forbidden(_):\n    raise PermissionError(1, 'Operation not permitted')\n"
        "os.nice = forbidden\n"
        "from lmtp_proxy.config.loader import main\n"
        "main(sys.argv[1:])\n"
    )
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/sandboxed.py "$4"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    process = LoadingProcess(large, None)
    try:
        octets = Path(f"/proc/self/fd/{process.pipe}").read_bytes()
        config = process.result(octets, lambda seconds: loading._wait(process.pid, seconds)).config
    finally:
        process.close(lambda seconds: loading._wait(process.pid, seconds))
    assert len(config.users) == 40_000


HEADER = r"\0\0\0\0\0\0\0\020"


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("exit 0", "ended with status 0"),
        ("echo nonsense", "ended with status 0"),
        (rf"printf 'lmtp-ldr{HEADER}short'", "ended with status 0"),
        (rf"printf 'nonsense{HEADER}0123456789abcdef'", "ended with status 0"),
        ("echo first >&2; printf 'No room\\033\\n\\n' >&2; exit 3", r"ended with status 3: No room\\x1b"),
        ("kill -9 $$", "was ended by SIGKILL"),
        ("exec >&-; exec sleep 60", "was ended by SIGKILL"),
        ("head -c 100000 /dev/zero >&2; exit 1", r"ended with status 1: (\\x00)+\.\.\."),
    ],
)
def test_a_program_that_is_not_what_it_should_be(
    large: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, what: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(loading, "_PATIENCE", 0.3)
    before = descriptors()
    with pytest.raises(
        ConfigError, match=rf"large\.yml: cannot be loaded: the process that is to do it {what}$"
    ) as found:
        load(large)
    assert len(found.value.errors) == 1 and found.value.errors[0].isprintable()
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no zombie


def test_a_program_that_is_not_there(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = descriptors()
    with pytest.raises(ConfigError, match=r"cannot be started: No such file or directory$"):
        load(large)
    assert descriptors() == before


def test_a_process_that_is_not_waited_for_is_killed(large: str) -> None:
    process = LoadingProcess(large, StaticTable())
    began = time.monotonic()
    wait = lambda seconds: loading._wait(process.pid, seconds)  # noqa: E731
    process.close(wait)
    assert time.monotonic() - began < SOON
    assert not os.path.exists(f"/proc/{process.pid}")
    assert str(process.pid) in repr(process)
    assert "did not end in" in str(process.too_long())


def descriptors() -> list[str]:
    """What is open of the kinds that a loading process needs."""
    gc.collect()
    links = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(link for link in links if link.startswith(("/memfd:", "pipe:")))
