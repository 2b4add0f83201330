# SPDX-License-Identifier: GPL-3.0-or-later
"""One process that serves: patches the standard library for gevent, builds the parts and joins them, handles signals.

Importing this module makes the process cooperative, so it is imported last, after the process has become a daemon: a
gevent hub from before that does not survive the fork. All that can fail for an operator's mistake has been done by
then.
"""

# ruff: noqa: E402
from select import poll as unpatched_poll  # gevent's own knows no POLLRDHUP

from gevent import monkey

monkey.patch_all()

import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_address

import gevent
import gevent.socket
import setproctitle
from gevent.event import Event

from lmtp_proxy import __version__
from lmtp_proxy.commit import Cutover
from lmtp_proxy.config_manager import ConfigManager
from lmtp_proxy.config_values import Config
from lmtp_proxy.control import Application, ControlState
from lmtp_proxy.control_server import MAX_CONNECTIONS, ControlServer
from lmtp_proxy.generation import retire
from lmtp_proxy.in_flight import InFlight
from lmtp_proxy.log import finish_log, set_up_log
from lmtp_proxy.parking import Parking
from lmtp_proxy.server import Server
from lmtp_proxy.session import Shared
from lmtp_proxy.uncertain_log import UncertainLog

_log = logging.getLogger(__name__)
_TITLE_SECONDS = 1.0
_LEAVE_TAKING = 2.0  # seconds
_OTHER_FILES = 64 + MAX_CONNECTIONS  # log, loop, DNS, the configuration while it is read; the control socket
RELOAD_SIGNALS = (signal.SIGUSR1, signal.SIGHUP)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Title:
    """The process title, brought up to date at most once a second and only when something changed."""

    def __init__(self, path: str) -> None:
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
        setproctitle.setproctitle(f"lmtp-proxy: {self._sessions} sessions [{self._path}]")


def serve(
    config: Config,
    listener: socket.socket,
    control: socket.socket | None,
    *,
    daemonised: bool,
    received: Iterable[int],
    ready: Callable[[], None],
    remove_socket: Callable[[], None],
    remove_control: Callable[[], None],
    after_crash: bool,
) -> None:
    """Serve on `listener` and `control`, bound and listening, until a stop signal; ends after the last session.

    received: signals that came before this could handle them. ready: called once when clients are served.
    remove_socket, remove_control: called first thing on stop, and last, so that what is still under way can be seen,
    and no other process takes over meanwhile that knows nothing of it. after_crash: the one before did not end well.
    """
    set_up_log(config.log, daemonised=daemonised, poll=unpatched_poll, later=_later)
    _allow_open_files(config)
    parking = Parking()
    manager = ConfigManager(config, parking.generation_changed)
    stop = Event()
    for number in RELOAD_SIGNALS:
        gevent.signal_handler(number, manager.request_reload)
    for number in STOP_SIGNALS:
        gevent.signal_handler(number, stop.set)
    for early in received:
        (stop.set if early in STOP_SIGNALS else manager.request_reload)()

    in_flight = InFlight()
    uncertain = UncertainLog(manager.current, in_flight)
    shared = Shared(Cutover(manager.current, in_flight, uncertain), parking, unpatched_poll)
    title = _Title(config.path)
    own = _cooperative(listener)
    server = Server(own, shared, config.max_clients, title.sessions_changed)
    control_server = None
    if control is not None:
        state = ControlState(
            manager, in_flight, parking, uncertain, server.sessions, stop.is_set, str(config.socket), after_crash
        )
        control_server = ControlServer(_cooperative(control), Application(state))
    gc.freeze()  # what a start leaves behind stays: no need to walk it again and again
    reloads = gevent.spawn(manager.run)
    server.start()
    if control_server:
        control_server.start()
    _log.info(
        "ready: lmtp-proxy %s on %s, generation 1 of %s: %d users, %d backends",
        __version__,
        config.socket,
        config.path,
        len(config.users),
        len(config.backends),
    )
    _warn_open_listener(config, own)
    ready()
    stop.wait()
    _log.info("stopping: no new clients are accepted")
    remove_socket()
    server.stop()
    gevent.joinall(retire(manager.current()), timeout=_LEAVE_TAKING)
    uncertain.stop()
    remove_control()
    if control_server:
        control_server.stop()
    reloads.kill()
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("greenlets left: %d", _greenlets_left())
    _log.info("stopped")
    finish_log()


def _later(seconds: float, call: Callable[[], None]) -> None:
    """Have the hub call it; it must not wait."""
    timer = gevent.get_hub().loop.timer(seconds)
    timer.start(call)


def _cooperative(listener: socket.socket) -> socket.socket:
    """The socket as one of gevent's: it was made before the patching."""
    own = gevent.socket.socket(listener.family, listener.type, listener.proto, fileno=listener.detach())
    own.setblocking(False)
    return own


def _greenlets_left() -> int:
    """Greenlets that have not ended, which should be none when the last session has: to find leaks with."""
    return sum(isinstance(thing, gevent.Greenlet) and not thing.ready() for thing in gc.get_objects())


def _allow_open_files(config: Config) -> None:
    """Raise our limit of open files to what the configured limits may need: the usual 1024 are soon used up."""
    wanted = _OTHER_FILES + config.max_clients + sum(backend.max_connections for backend in config.backends.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        _log.warning(
            "max_clients and max_connections may need %d open files, the hard limit is %d: raise it (ulimit -Hn,"
            " LimitNOFILE=) or lower them",
            wanted,
            hard,
        )


def _warn_open_listener(config: Config, listener: socket.socket) -> None:
    if config.allow is not None or listener.family == socket.AF_UNIX:
        return
    if not ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        _log.warning("%s is no loopback address and config.allow is not set: any host may deliver", config.socket)
