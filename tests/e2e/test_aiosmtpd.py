# SPDX-License-Identifier: GPL-3.0-or-later
"""Python's aiosmtpd as a store: it answers a message once, however many recipients it has (against RFC 2033)."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.proxy import ProxyProcess

from .process import wait_until
from .requirements import SYSTEM_PYTHON, missing_for_aiosmtpd

NAMES = [f"u{number}@a" for number in range(3)]


@pytest.fixture
def store() -> Iterator[tuple[Path, Path]]:
    """Its socket, and the file of what it took."""
    if reason := missing_for_aiosmtpd():
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="lpa-", dir="/tmp"))
    try:
        with (directory / "out").open("w") as out:
            program = Path(__file__).with_name("aiosmtpd_store.py")
            process = subprocess.Popen([SYSTEM_PYTHON, program, directory / "s"], stdout=out, cwd=directory)
        try:
            wait_until(lambda: "ready" in (directory / "out").read_text(), 20, "the store starts")
            yield directory / "s", directory / "out"
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(directory)


@contextmanager
def proxy_of(socket: Path, **keys: object) -> Iterator[ProxyProcess]:
    backend = {"socket": str(socket), "timeouts": {"final_reply": 4}, **keys}
    with ProxyProcess({"config": {}, "backends": {"a": backend}, "users": {"@a": "a"}}, workers=1) as proxy:
        yield proxy


def taken(out: Path) -> list[list[str]]:
    return [json.loads(line) for line in out.read_text().splitlines()[1:]]


def test_it_answers_once_for_all(store: tuple[Path, Path]) -> None:
    """Whoever mends aiosmtpd learns it here."""
    with proxy_of(store[0]) as proxy, proxy.client() as client:
        outcome = client.deliver("s@x", NAMES)
        assert [outcome.verdict(number).code for number in range(3)] == [250, 451, 451]
        client.quit()
        proxy.wait_log("may be delivered")
    assert taken(store[1]) == [NAMES]


def test_with_one_recipient_a_transaction_each_has_a_reply_and_one_copy(store: tuple[Path, Path]) -> None:
    with proxy_of(store[0], recipients_per_transaction=1) as proxy, proxy.client() as client:
        for pipelined in (True, False):
            outcome = client.deliver("s@x", NAMES, pipelined=pipelined)
            assert [outcome.verdict(number).code for number in range(3)] == [250] * 3
        client.quit()
        assert "may be delivered" not in proxy.log()
    assert sorted(taken(store[1])) == sorted([[name] for name in NAMES] * 2)


def test_without_the_key_it_is_named_and_gets_one_at_a_time_in_the_end(store: tuple[Path, Path]) -> None:
    with proxy_of(store[0], timeouts={"final_reply": 2}) as proxy, proxy.client() as client:
        for _ in range(3):
            outcome = client.deliver("s@x", NAMES)
            assert [outcome.verdict(number).code for number in range(3)] == [250, 451, 451]
        assert "gave 1 of 3 final replies" in proxy.wait_log("does it answer per recipient")
        proxy.wait_log("it gets one recipient in a transaction")
        outcome = client.deliver("s@x", NAMES)
        assert [outcome.verdict(number).code for number in range(3)] == [250] * 3
        client.quit()
    assert sorted(taken(store[1])[3:]) == [[name] for name in NAMES]
