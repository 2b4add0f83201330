# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's own load generator through the proxy into two of Postfix's own sinks. Needs no root."""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import Start
from .process import accepts_unix, wait_until
from .requirements import missing_for_smtp_source, program

SESSIONS = 100
MESSAGES = 5000


class Sink:
    """`smtp-sink -L` on a unix socket: takes all and counts."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "lmtp"
        self._output = directory / "counters"
        command = program("smtp-sink")
        assert command is not None
        user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to work as root
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                [command, "-L", "-c", *user, f"unix:{self.socket}", "256"], stdin=subprocess.DEVNULL, stdout=output
            )
        wait_until(lambda: accepts_unix(self.socket), 30, "smtp-sink listening")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def messages(self) -> int:
        """How many messages it has taken."""
        counted: list[str] = re.findall(r"mesg=(\d+)", self._output.read_text("ascii"))
        return int(counted[-1]) if counted else 0


@pytest.fixture
def sinks() -> Iterator[tuple[Sink, Sink]]:
    reason = missing_for_smtp_source()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as cleanup:
        made = []
        for _ in range(2):
            directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="lps-", dir="/tmp")))
            directory.chmod(0o755)
            made.append(Sink(directory))
            cleanup.callback(made[-1].stop)
        yield made[0], made[1]


@pytest.mark.timeout(300)
def test_100_sessions_of_50_messages_each_without_an_error(sinks: tuple[Sink, Sink], start_proxy: Start) -> None:
    limits = {"max_per_user": SESSIONS}  # all mail is to one user at each store
    backends = {name: {"socket": str(sink.socket), **limits} for name, sink in zip(("old", "new"), sinks, strict=True)}
    users = {"u@example.test": "old", "2u@example.test": "new"}
    messages, recipients = MESSAGES, 2
    version = subprocess.run(["/usr/sbin/postconf", "-dh", "mail_version"], capture_output=True, text=True, check=True)
    if tuple(map(int, version.stdout.split(".")[:2])) >= (3, 10):
        # It numbers the recipients of all sessions in one row, so two of one message may be at one store.
        messages, recipients = 2 * MESSAGES, 1
        users = {f"u{number}@example.test": ("old", "new")[number % 2] for number in range(messages)}
    proxy = start_proxy({"config": {}, "backends": backends, "users": users})
    command = program("smtp-source")
    assert command is not None

    # -d: a session goes on with the next message on the same connection; -r 2: to 2u@ and u@
    options = (
        f"-L -d -s {SESSIONS} -m {messages} -r {recipients} -l 4000 -f sender@example.test -t u@example.test".split()
    )

    done = subprocess.run(
        [command, *options, f"unix:{proxy.address}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert [sink.messages() for sink in sinks] == [MESSAGES, MESSAGES]
    time.sleep(0.5)  # the log comes in batches
    log = proxy.log()
    assert len(re.findall(r"status=sent", log)) == 2 * MESSAGES
    assert re.findall(r"status=(?:deferred|bounced|aborted)", log) == []
