"""`bin/lmtp-proxyctl` as an operator runs it, and a scripted peer on a control socket for answers no proxy gives."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests import ROOT
from tests.support.backend import FakeBackend
from tests.support.proxy import ProxyProcess, config_of

PROGRAM = ROOT / "bin" / "lmtp-proxyctl"


@dataclass(frozen=True)
class Run:
    """How one command ended."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> Any:
        """The JSON document on stdout, which must be all there is."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr that says what went wrong: the last."""
        *_, last = self.err.splitlines()
        assert last.startswith("lmtp-proxyctl: "), self.err
        return last.removeprefix("lmtp-proxyctl: ")

    def check(self) -> Run:
        """No traceback ever, and what people read on stdout fits on their screen. For tests with narrow characters."""
        assert "Traceback" not in self.err and "Exception ignored" not in self.err, self.err
        if not self.out.startswith("{"):
            wide = [line for line in self.out.splitlines() if len(line) > 80 or not line.isprintable()]
            assert not wide, wide
        return self


def start_ctl(*arguments: str, environment: Mapping[str, str] | None = None, **settings: Any) -> subprocess.Popen[str]:
    """Starts the command; it can be interrupted even if the tests run in the background of a shell."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        stdin=settings.pop("stdin", subprocess.DEVNULL),
        stdout=settings.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80", **(environment or {})},
        restore_signals=True,
        **settings,
    )


def end_ctl(process: subprocess.Popen[str], began: float, *, text: str | None = None, timeout: float = 50) -> Run:
    """Waits for its end."""
    try:
        out, err = process.communicate(text, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it did not end in {timeout} s:\n{out}\n{err}") from None
    return Run(process.returncode, out or "", err, time.monotonic() - began).check()


def ctl(*arguments: str, text: str | None = None, **settings: Any) -> Run:
    """Runs the command to its end; `text` goes to its stdin."""
    began = time.monotonic()
    if text is not None:
        settings["stdin"] = subprocess.PIPE
    return end_ctl(start_ctl(*arguments, **settings), began, text=text)


def controlled(
    backends: Mapping[str, FakeBackend], users: Mapping[str, str] | None = None, **settings: object
) -> ProxyProcess:
    """A proxy with a control socket, `ctl` in its directory, and a log of uncertain deliveries, `uncertain`."""
    directory = tempfile.mkdtemp(prefix="lpp", dir="/tmp")
    own: dict[str, object] = {"control": {"socket": f"{directory}/ctl"}, "uncertain_log": f"{directory}/uncertain"}
    return ProxyProcess(config_of(backends, users, **{**own, **settings}), directory=directory)  # type: ignore[arg-type]


# --- a peer that says what it is told --------------------------------------------------------------------------------


def http(code: int, document: object) -> bytes:
    """A whole response."""
    body = json.dumps(document).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (code, len(body), body)


Answer = bytes | Callable[[socket.socket, Any], None]


class FakeControl:
    """Listens at `path`. answers: `POST /drain` -> what is sent to each request in turn, the last one again and again.

    An answer may be a function of the connection and the request's JSON body, too. requests: all that came.
    """

    def __init__(self, answers: Mapping[str, Sequence[Answer]]) -> None:
        self.directory = tempfile.mkdtemp(prefix="lpk", dir="/tmp")
        self.path = os.path.join(self.directory, "ctl")
        self.answers = {name: list(steps) for name, steps in answers.items()}
        self.requests: list[tuple[str, Any]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def bodies(self, name: str) -> list[Any]:
        """The JSON bodies of the requests `name`."""
        return [body for request, body in self.requests if request == name]

    def stop(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._thread.join(5)
        shutil.rmtree(self.directory, ignore_errors=True)

    def vanish(self) -> None:
        """From here on as if the process had been killed: the name stays, nobody listens."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    self._serve(connection)
                except OSError:
                    pass

    def _serve(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := connection.recv(65536)):
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        while length and len(body) < int(length[1]):
            body += connection.recv(65536)
        name = " ".join(head.split(b"\r\n")[0].decode().split(" ")[:2])
        document = json.loads(body) if body else None
        self.requests.append((name, document))
        steps = self.answers.get(name.partition("?")[0], [http(404, {"error": f"there is no {name}"})])
        answer = steps.pop(0) if len(steps) > 1 else steps[0]
        if isinstance(answer, bytes):
            connection.sendall(answer)
        else:
            answer(connection, document)

    def __enter__(self) -> FakeControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
