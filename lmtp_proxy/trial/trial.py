# SPDX-License-Identifier: GPL-3.0-or-later
"""`lmtp-proxy --try`: the proxy in front of one's own two stores, on a port of its own, with everybody on the old one.

It writes a small configuration, starts the real proxy by it as a child, asks both stores whether they would take mail,
and says the one line for swaks and the one for Postfix. Nothing of the MTA or of the stores is changed. Ctrl-C ends it,
and what is left is the configuration.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Final

from lmtp_proxy.config.loading import load
from lmtp_proxy.config.values import ConfigError
from lmtp_proxy.ctl.client import Answer, ControlClient, ControlError
from lmtp_proxy.ctl.drain import Failed, Progress
from lmtp_proxy.ctl.names import key_of, quoted
from lmtp_proxy.ctl.output import wrapped
from lmtp_proxy.ctl.probe import probe
from lmtp_proxy.streams import say
from lmtp_proxy.trial.child_log import ChildLog
from lmtp_proxy.trial.configuration import FORM, MARK, configuration, store

DEFAULT_FILE: Final = "lmtp-proxy-try.yml"
DEFAULT_LISTEN: Final = "127.0.0.1:2425"
_EXAMPLE: Final = "alice@example.org"
_READY = 30.0  # seconds for the child to serve
_PAUSE = 0.05


class TrialError(Exception):
    """One line for the operator."""


class _AskedToEnd(Exception):
    """Somebody wants it to end."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says; None where it does not.

    Attributes:
        path: of the configuration.
        old, new: the stores, as Postfix' next hop may be written.
        listen: HOST:PORT.
        user: for whom the stores are asked, and whom the lines name.
    """

    path: str | None = None
    old: str | None = None
    new: str | None = None
    listen: str | None = None
    user: str | None = None


def try_out(wishes: Wishes, program: list[str]) -> int:
    """Runs until Ctrl-C; returns the exit status. program: how lmtp-proxy itself is called."""
    try:
        return _Trial(wishes, program).run()
    except ConfigError as error:
        say(sys.stderr, error.errors)
        return 1
    except (TrialError, ControlError) as error:
        say(sys.stderr, [f"lmtp-proxy: {error}"])
        return 1
    except Failed as failed:
        say(sys.stderr, [f"lmtp-proxy: {failed.text}"])
        return 1


class _Trial:
    def __init__(self, wishes: Wishes, program: list[str]) -> None:
        self._wishes = wishes
        self._program = program
        self._path = os.path.abspath(wishes.path or DEFAULT_FILE)
        self._control = os.path.splitext(self._path)[0] + ".control"
        self._child: subprocess.Popen[bytes] | None = None
        self._log: ChildLog | None = None
        self._asked_to_end = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            user, written = self._prepared()
        except _AskedToEnd:
            say(sys.stderr, [""])
            return 128 + signal.SIGINT
        serves = False
        try:
            self._start()
            serves = True
            self._ask_the_stores(user)
            self._tell(user)
            assert self._child is not None
            self._child.wait()
        except _AskedToEnd:
            pass
        finally:
            status = self._end()
            if written and not serves:
                with suppress(OSError):
                    os.unlink(self._path)
        if not self._asked_to_end:
            raise TrialError(f"the proxy has ended by itself, with status {status}: its log above says why")
        if not serves:
            return 128 + signal.SIGINT
        what = "It has ended. Take the line out of transport_maps again, or Postfix keeps that user's mail."
        say(sys.stdout, ["", *wrapped(f"{what} The configuration is left: {self._path}", "")])
        return 0

    # --- before ------------------------------------------------------------------------------------------------------

    def _prepared(self) -> tuple[str | None, bool]:
        """For whom the stores are asked, and whether the file is ours to remove."""
        user = self._checked_user(self._wishes.user)
        if os.path.lexists(self._control):
            what = "is there: another --try runs by this file, or was killed"
            raise TrialError(f"{self._control} {what}; remove it, or name another file with -c")
        if not os.path.lexists(self._path):
            return self._write(user), True
        self._take_what_is_there()
        return user or next(iter(load(self._path).users), None), False

    def _checked_user(self, user: str | None) -> str | None:
        try:
            return None if user is None else key_of(user)
        except ValueError as error:
            raise TrialError(f"--user: {error}") from None

    def _take_what_is_there(self) -> None:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                text = file.read(4096)
        except OSError as error:
            raise TrialError(f"{self._path}: cannot be read: {error.strerror}") from error
        if not text.startswith(MARK):
            raise TrialError(f"{self._path} is there, and is none that --try wrote: name another file with -c")
        if self._wishes.old or self._wishes.new or self._wishes.listen:
            what = "is there: leave --old, --new and --listen out to use it as it is, or remove it"
            raise TrialError(f"{self._path} {what}")

    def _write(self, user: str | None) -> str | None:
        """Asks for what is not on the command line, if there is somebody to ask."""
        listen = self._wishes.listen or DEFAULT_LISTEN
        asked = self._wishes.old is None or self._wishes.new is None
        old = self._given("--old", self._wishes.old, "The store that everybody is on")
        new = self._given("--new", self._wishes.new, "The new store")
        if asked and user is None:
            user = self._answer(f"One user, as {_EXAMPLE} (or nothing)", lambda text: text and key_of(text)) or None
        try:
            text = configuration(old, new, listen, self._control, user)
        except ValueError as error:
            raise TrialError(f"--listen: {error}") from None
        try:
            with open(self._path, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise TrialError(f"{self._path}: cannot be written: {error.strerror}; name another file with -c") from error
        return user

    def _given(self, option: str, value: str | None, question: str) -> str:
        if value is None:
            if sys.stdin is None or not sys.stdin.isatty():
                raise TrialError(f"--try needs {option}, {FORM}")
            return self._answer(f"{question}: {FORM}", lambda text: store(text) and text)
        try:
            store(value)
        except ValueError as error:
            raise TrialError(f"{option}: {error}") from None
        return value

    def _answer(self, question: str, convert: Callable[[str], str]) -> str:
        while True:
            try:
                return convert(input(f"{question}\n> ").strip())
            except ValueError as error:
                say(sys.stderr, wrapped(str(error)))
            except EOFError:
                raise TrialError("no answer; nothing was begun") from None

    # --- the proxy ---------------------------------------------------------------------------------------------------

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        """Once it waits for what is under way; twice it does not."""
        if self._asked_to_end:
            if self._child is not None:
                self._child.kill()
            return
        self._asked_to_end = True
        raise _AskedToEnd

    def _start(self) -> None:
        """Until it serves, or has said why it does not."""
        # A group of its own: Ctrl-C is for us, who ask it once to end.
        self._child = subprocess.Popen(
            [*self._program, "-c", self._path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0
        )
        assert self._child.stderr is not None
        self._log = ChildLog(self._child.stderr)
        latest = time.monotonic() + _READY
        while self._child.poll() is None:
            with suppress(ControlError):
                ControlClient(self._control).get("/status")
                return
            if time.monotonic() > latest:
                raise TrialError(f"the proxy did not serve within {_READY:.0f} s")
            time.sleep(_PAUSE)
        raise TrialError(self._log.last_line() or f"the proxy did not start: status {self._child.returncode}")

    def _ask_the_stores(self, user: str | None) -> None:
        progress = Progress(sys.stderr)
        done = probe(ControlClient(self._control), [], [user] if user else [], progress)
        say(sys.stdout, ["", *done.lines])
        for each in Answer(done.document, self._control).objects("backends"):
            if not each.has_null("refused"):
                what = f"{each.text('backend')} does not answer as a store does ({each.text('refused')})"
                again = f"lmtp-proxy --try -c {shlex.quote(self._path)}"
                raise TrialError(f"{what}: put it right in {self._path}, and run `{again}`")

    def _tell(self, user: str | None) -> None:
        with_whom = quoted(user or _EXAMPLE)
        place = ControlClient(self._control).get("/status").text("socket")
        host, _, port = place.rpartition(":")
        server = f"--server {host.strip('[]')} --port {port}"
        who, file = shlex.quote(with_whom), shlex.quote(self._path)
        lines = [
            "",
            *wrapped(f"The proxy serves on {place}, by {self._path}. Your MTA was not changed.", ""),
            "",
            "One mail through it:",
            f"  swaks --protocol LMTP {server} --to {who}",
            "All mail of one user through it, by this line in Postfix's transport_maps:",
            f"  {with_whom} lmtp:inet:{place}",
            "That user on the new store, and back:",
            f"  lmtp-proxyctl -c {file} move {who} new",
            f"  lmtp-proxyctl -c {file} move {who} old",
            "",
            "Ctrl-C ends it. This is its log:",
        ]
        say(sys.stdout, lines)
        assert self._log is not None
        self._log.show()

    def _end(self) -> int:
        """Its exit status, 0 if it never was. Waits for mail that is under way, as a stop does."""
        child = self._child
        if child is None:
            return 0
        if child.poll() is None:
            child.terminate()
        try:
            status = child.wait()
        except _AskedToEnd:
            status = child.wait()
        if self._log is not None:
            self._log.end()
        return status
