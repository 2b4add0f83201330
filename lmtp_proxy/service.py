# SPDX-License-Identifier: GPL-3.0-or-later
"""One process that serves: patches the standard library for gevent, builds the parts and joins them, handles signals.

Importing this module makes the process cooperative, so it is imported last, after the process has become a daemon: a
gevent hub from before that does not survive the fork. All that can fail for an operator's mistake has been done by
then.
"""

# ruff: noqa: E402
import socket

import gevent.socket
from gevent import monkey

# What smtplib waits for, and nothing else does: monkey.patch_socket without its call of plug-ins, for which Debian's
# gevent imports pkg_resources, 7 MB.
for _name in ("socket", "create_connection", "getaddrinfo", "gethostbyname", "getfqdn"):
    monkey.patch_item(socket, _name, getattr(gevent.socket, _name))  # type: ignore[attr-defined]

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event
from greenlet import greenlet

from lmtp_proxy.clients.server import Server
from lmtp_proxy.clients.session import Shared
from lmtp_proxy.config.values import Config
from lmtp_proxy.control.state import MAX_CONNECTIONS, ControlState, Since
from lmtp_proxy.counts import Tallies
from lmtp_proxy.delivery.commit import ProcessParts
from lmtp_proxy.delivery.in_flight import InFlight
from lmtp_proxy.delivery.parking import Parking
from lmtp_proxy.delivery.uncertain_log import UncertainLog
from lmtp_proxy.figures.loop_watch import LoopWatch
from lmtp_proxy.figures.samples import Samples
from lmtp_proxy.generations.following import follow
from lmtp_proxy.generations.generation import retire
from lmtp_proxy.generations.manager import ConfigManager
from lmtp_proxy.generations.share import WHOLE, Share
from lmtp_proxy.log import finish_log, set_up_log, tell_lost_lines
from lmtp_proxy.loop.late import OnDemand
from lmtp_proxy.loop.process import allow_open_files, cooperative, every, show_title
from lmtp_proxy.receipts.receipts import Receipts
from lmtp_proxy.start.late_modules import FOR_CONTROL, FOR_METRICS
from lmtp_proxy.start.ready import log_ready
from lmtp_proxy.start.signals import handle_signals

if TYPE_CHECKING:
    from lmtp_proxy.control.resources import Application
    from lmtp_proxy.control.server import ControlServer
    from lmtp_proxy.start.start import Start

_log = logging.getLogger(__name__)
_TITLE_SECONDS = 1.0
_LEAVE_TAKING = 2.0  # seconds
_OTHER_FILES = 64 + MAX_CONNECTIONS  # log, loop, DNS, the configuration while it is read; the control socket


class _Title:
    """The process title, brought up to date at most once a second and only when something changed."""

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = path
        self._sessions = 0
        self._due = False
        self._show()

    def sessions_changed(self, sessions: int) -> None:
        self._sessions = sessions
        if not self._due:
            self._due = True
            gevent.spawn_later(_TITLE_SECONDS, self._show)

    def _show(self) -> None:
        self._due = False
        show_title(f"{self._name}: {self._sessions} sessions [{self._path}]")


class Service:
    """The parts of a process that serves mail, built and joined; it accepts clients from `accept` to `finish`.

    Args:
        listeners: bound and listening.
        addresses: of these, for people.
        max_clients: of all processes together.
        name: how the title of the process begins.
        after_crash: the proxy before did not end well.
        parking: where sessions wait for a route, if other processes share it.
        share: this process's part of all limits.

    Attributes:
        manager: has the configuration; its `run` is for the caller.
        state: what can be asked about.
        stopping: to be set when the process is about to `finish`.
    """

    def __init__(
        self,
        config: Config,
        listeners: Sequence[socket.socket],
        addresses: Sequence[str],
        *,
        max_clients: int,
        name: str = "lmtp-proxy",
        after_crash: bool = False,
        parking: Parking | None = None,
        share: Share = WHOLE,
    ) -> None:
        _allow_files_for(config)
        parking = Parking() if parking is None else parking
        in_flight = InFlight()
        receipts = Receipts(config.receipts)

        def generation_changed() -> None:
            parking.generation_changed()
            receipts.generation_changed(self.manager.current().config.receipts)

        self.manager = ConfigManager(config, generation_changed, share)
        self.manager.last_flight = lambda: in_flight.last
        self.stopping = Event()
        self._uncertain = UncertainLog(self.manager.current, in_flight)
        self._receipts = receipts
        tallies = Tallies()
        tell_lost_lines(tallies.log_lines_lost)
        parts = ProcessParts(self.manager.current, in_flight, self._uncertain, receipts, tallies)
        shared = Shared(parts, parking)
        title = _Title(name, config.path)
        watch = LoopWatch(tallies, in_flight)

        def sessions_changed(sessions: int) -> None:
            title.sessions_changed(sessions)
            watch.wake()

        mail = [cooperative(listener) for listener in listeners]
        self._server = Server(mail, shared, share.part(max_clients), sessions_changed, alone=share.of == 1)
        self.state = ControlState(
            *(self.manager, in_flight, parking, self._uncertain, self._server.sessions, self.stopping.is_set),
            tuple(addresses),
            Since.now(after_crash=after_crash),
            receipts=receipts,
            tallies=tallies,
        )
        gc.freeze()  # what a start leaves behind stays: no need to walk it again and again

    def accept(self) -> None:
        """Let clients in."""
        self._server.start()

    def finish(self) -> None:
        """Let nobody in any more, and return when the last session has ended and all that it left is on the disk."""
        self._server.stop()
        gevent.joinall(retire(self.manager.current()), timeout=_LEAVE_TAKING)
        self._uncertain.stop()
        self._receipts.stop()


def serve(start: "Start") -> int:
    """Serve until a stop signal, and end after the last session. Returns the exit status."""
    config = start.config
    begin_log(config, daemonised=start.daemonised)
    service = Service(
        config,
        [listener.socket for listener in start.mail],
        start.addresses,
        after_crash=start.after_crash,
        max_clients=config.max_clients,
    )
    alive = every(start.notifier.alive_every, start.notifier.alive)
    service.manager.tell = start.notifier.status
    handle_signals(start.received, gevent.signal_handler, service.manager.request_reload, service.stopping.set)
    servers: list[OnDemand | Samples] = []
    answers = _Answers(service.state, config.hostname)
    if start.control is not None:
        servers.append(OnDemand("control", cooperative(start.control.socket), FOR_CONTROL, answers.on_control))
    if start.metrics is not None:
        servers.append(answers.samples)
        servers.append(OnDemand("metrics", cooperative(start.metrics.socket), FOR_METRICS, answers.on_metrics))
    reloads = gevent.spawn(service.manager.run)
    following = follow(service.manager, config)
    service.accept()
    for server in servers:
        server.start()
    log_ready(config, start.mail, start.users)
    start.ready()
    service.stopping.wait()
    _log.info("stopping: no new clients are accepted")
    start.notifier.stopping()
    start.remove_mail()
    service.finish()
    start.remove_control()
    for server in servers:
        server.stop()
    if following is not None:
        following.stop()
    reloads.kill()
    if alive is not None:
        alive.kill()
    log_greenlets_left()
    _log.info("stopped")
    finish_log()
    return 0


class _Answers:
    """Who answers those who ask; loaded when somebody does."""

    def __init__(self, state: ControlState, hostname: str) -> None:
        self.samples = Samples(state.figures)
        self._state = state
        self._hostname = hostname
        self._application: Application | None = None

    def on_control(self, listener: socket.socket) -> "ControlServer":
        """The server on the control socket."""
        from lmtp_proxy.control.server import ControlServer

        return ControlServer(listener, self._control())

    def on_metrics(self, listener: socket.socket) -> "ControlServer":
        """The server of `config.metrics`."""
        from lmtp_proxy.web.server import metrics_server

        return metrics_server(listener, self._control(), self.samples, self._hostname, self._state.stopping)

    def _control(self) -> "Application":
        if self._application is None:
            from lmtp_proxy.control.resources import Application

            self._application = Application(self._state)
        return self._application


def begin_log(config: Config, *, daemonised: bool, with_pid: bool = False) -> None:
    """See set_up_log; in batches, on gevent's loop."""
    set_up_log(config.log, daemonised=daemonised, later=_later, with_pid=with_pid)


def _later(seconds: float, call: Callable[[], None]) -> None:
    """Have the hub call it; it must not wait."""
    timer = gevent.get_hub().loop.timer(seconds)
    timer.start(call)


def log_greenlets_left() -> None:
    """How many greenlets have not ended, which should be none when the last session has: to find leaks with."""
    if _log.isEnabledFor(logging.DEBUG):
        left = sum(_is_alive(thing) for thing in gc.get_objects())
        _log.debug("greenlets left: %d", left)


def _is_alive(thing: object) -> bool:
    if isinstance(thing, gevent.Greenlet):
        return not thing.ready()
    return type(thing) is greenlet and bool(thing) and thing.parent is not None  # a client's; else the main one


def _allow_files_for(config: Config) -> None:
    """As many as the configured limits may need."""
    wanted = _OTHER_FILES + config.max_clients + sum(backend.max_connections for backend in config.backends.values())
    allowed = allow_open_files(wanted)
    if allowed < wanted:
        _log.warning(
            "max_clients and max_connections may need %d open files, the hard limit is %d: raise it (ulimit -Hn,"
            " LimitNOFILE=) or lower them",
            wanted,
            allowed,
        )
