# SPDX-License-Identifier: GPL-3.0-or-later
"""One worker as its supervisor sees it: started, asked, told to stop, and how it ended.

It is started by exec: a gevent hub does not survive a fork. It decides nothing about what is asked or answered.
"""

import enum
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple

import gevent
from gevent.event import Event
from gevent.subprocess import DEVNULL, Popen

from lmtp_proxy import ROOT
from lmtp_proxy.workers.channel import HEADER, WorkerChannel
from lmtp_proxy.workers.settings import WorkerSettings

_PATIENCE = 2.0  # seconds between two looks whether a worker that has not answered yet is alive
_PROMPT = 5.0  # seconds in which it says so, however much it has to do
_END = 2.0  # seconds from the end of a connection to that of the process, where the latter was the reason
_SILENCE = "no sign of life"


class State(enum.Enum):
    """What a worker is about. In the last two it may have deliveries."""

    STARTING = "starting"
    LOADED = "loaded"
    SERVING = "serving"
    STOPPING = "stopping"


class WorkerEnded(Exception):
    """There is no answer because the process has ended; `ended` is set."""


class NoAnswer(Exception):
    """There is no answer although the process is there; the text names it."""


class WorkerAnswer(NamedTuple):
    """What a worker said.

    Attributes:
        code: of HTTP.
        document: as the application made it.
    """

    code: int
    document: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.code == HTTPStatus.OK


class WorkerProcess:
    """A worker from its start to its end.

    Args:
        settings: all but `channel`; its descriptors are ours, and inherited under the same numbers.
        on_end: called with this when the process has ended, before `ended` is set.

    Attributes:
        number: from 1 on.
        pid: of the process.
        instance: names the process; empty until it has loaded.
        began: when it was started, in seconds since the epoch.
        state: what it is about.
        served: it was let accept clients.
        silent: it did not answer when it was asked last.
        status: as in subprocess, None while it runs.
        ended: set when it has ended.
    """

    def __init__(self, settings: WorkerSettings, on_end: "Callable[[WorkerProcess], None]") -> None:
        self.number = settings.number + 1
        self.instance = ""
        self.began = time.time()
        self.state = State.STARTING
        self.served = False
        self.silent = False
        self.status: int | None = None
        self.ended = Event()
        self._on_end = on_end
        self._channel = WorkerChannel()
        far = self._channel.far.fileno()
        text = settings._replace(channel=far).to_text()
        path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
        try:
            self._process = Popen(
                # -P: what lies in the directory that we were started in is none of our modules.
                [sys.executable, "-P", "-m", "lmtp_proxy.workers.worker", text],
                stdin=DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=(*settings.listeners, far, settings.places),
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor
            )
        except BaseException:
            self._channel.close()
            raise
        self._channel.far.close()
        self.pid: int = self._process.pid
        gevent.spawn(self._wait)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.number} pid {self.pid} {self.state.value}>"

    def hear(self) -> list[str] | None:
        """Wait for what it says when it has loaded: what is wrong, nothing if it is ready; None if it ended."""
        return self._channel.hear()

    def stop(self) -> None:
        """Have it end after its sessions."""
        self.state = State.STOPPING
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.status is None:
            self._process.send_signal(number)

    def how_it_ended(self) -> str:
        """`signal 9 (SIGKILL)` or `exit status 1`."""
        if self.status is None or self.status >= 0:
            return f"exit status {self.status}"
        return f"signal {-self.status} ({signal.Signals(-self.status).name})"

    def ask(
        self,
        method: str,
        resource: str,
        body: bytes | None = None,
        *,
        uid: int | None = None,
        timeout: float = 600.0,
    ) -> WorkerAnswer:
        """One request. It may take `timeout` seconds as long as the worker is alive, which is looked at meanwhile.

        Raises WorkerEnded and NoAnswer.

        Args:
            uid: whose request it is; None for the supervisor's own.
        """
        request = gevent.spawn(self._exchange, method, resource, body, uid, timeout)
        try:
            request.join(_PATIENCE)
            while not request.ready():
                alive = self._exchange("GET", "/alive", None, None, _PROMPT)
                if not isinstance(alive, WorkerAnswer) and not request.ready():
                    raise self._no_answer(alive)
                request.join(_PATIENCE)
            result = request.get()
        finally:
            request.kill()
        if not isinstance(result, WorkerAnswer):
            raise self._no_answer(result)
        self.silent = False
        return result

    def _no_answer(self, why: str) -> Exception:
        # Its connections end a moment before it does.
        if self.ended.wait(0 if why.startswith(_SILENCE) else _END):
            return WorkerEnded("it ended")
        self.silent = True
        what = f"worker {self.number} (pid {self.pid}) does not answer: {why}; is it stopped, or does it hang?"
        return NoAnswer(f"{what} kill -CONT or kill -KILL it")

    def _exchange(
        self, method: str, resource: str, body: bytes | None, uid: int | None, timeout: float
    ) -> WorkerAnswer | str:
        """The answer, or why there is none: gevent prints what leaves a greenlet."""
        headers = {HEADER: str(os.geteuid() if uid is None else uid), "Connection": "close"}
        connection = http.client.HTTPConnection("localhost")
        try:
            connection.sock = self._connect(timeout)
            connection.request(method, resource, body, headers)
            response = connection.getresponse()
            return WorkerAnswer(response.status, json.loads(response.read()))
        except TimeoutError:
            return f"{_SILENCE} for {timeout:g} s"
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"the connection broke ({str(error) or type(error).__name__})"
        finally:
            connection.close()

    def _connect(self, timeout: float) -> socket.socket:
        sock = self._channel.connect()
        sock.settimeout(timeout)
        return sock

    def _wait(self) -> None:
        self.status = self._process.wait()
        self._channel.close()
        self._on_end(self)
        self.ended.set()
