# SPDX-License-Identifier: GPL-3.0-or-later
"""What every MTA in front of the proxy can do in a test, besides Postfix, whose own module can do more."""

import abc
import shlex
from collections.abc import Sequence
from pathlib import Path

from .postfix import DOMAIN

SENDER = f"sender@{DOMAIN}"


class Mta(abc.ABC):
    """A private instance: all its mail goes to one LMTP server.

    nexthop: that server, a unix socket or an address and port. Nothing is tried again but by `run_queue`, or later than
    any test takes.
    """

    name = ""
    key = ""
    """What `lmtp-proxyctl requeue --mta` calls it."""
    returns_5xx = True
    """Whether a 5xx ends its tries, and goes back to the sender."""

    def __init__(self, directory: Path, nexthop: Path | tuple[str, int]) -> None:
        self.directory = directory
        self.nexthop = nexthop

    def start(self) -> None:  # noqa: B027  (most have nothing that serves between the commands)
        """What serves between the commands, if anything does."""

    def stop(self) -> None:  # noqa: B027
        """The end of all that was started."""

    @abc.abstractmethod
    def submit(self, ident: str, recipients: Sequence[str]) -> None:
        """Take a message from SENDER, with `ident` as its subject, into the queue, and answer."""

    @abc.abstractmethod
    def run_queue(self) -> None:
        """Try all that is in the queue now. It may return before that is done."""

    @abc.abstractmethod
    def queue_length(self) -> int:
        """How much is in the queue: messages or recipients, as it counts them."""

    @abc.abstractmethod
    def program(self) -> list[str]:
        """How its program is called that lists the queue and tries a mail again, as an operator would on its host."""

    def script(self) -> Path:
        """The same as a script."""
        path = self.directory / "program"
        path.write_text(f'#!/bin/sh\nexec {shlex.join(self.program())} "$@"\n', "utf-8")
        path.chmod(0o755)
        return path

    @abc.abstractmethod
    def log(self) -> str:
        """What it wrote to its log and output."""


def content(ident: str) -> str:
    """The message, with the line ends of a file."""
    return f"From: {SENDER}\nSubject: {ident}\n\nText of {ident}.\n..\n.x\n"
