# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that `lmtp-proxy` is with `workers: N`: it serves no mail, but has N workers do so, and speaks for them.

It stays small and out of the way of mail: a worker accepts clients, delivers and logs by itself. The standard library
is not patched here; what waits does so by gevent's own means.
"""

import logging
import os
import resource
import socket
from collections.abc import Callable, Iterable
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1

import gevent
import gevent.socket
import setproctitle
from gevent.event import Event

from lmtp_proxy import __version__
from lmtp_proxy.config.values import Config
from lmtp_proxy.control.server import ControlServer
from lmtp_proxy.control.state import MAX_CONNECTIONS
from lmtp_proxy.figures.samples import Samples
from lmtp_proxy.log import finish_log, set_up_log
from lmtp_proxy.loop.late import OnDemand
from lmtp_proxy.start.ready import log_ready
from lmtp_proxy.workers.merged import MergedApplication
from lmtp_proxy.workers.settings import WorkerSettings
from lmtp_proxy.workers.team import Team

_log = logging.getLogger(__name__)

_MARGIN = 30.0  # seconds more for a worker to end than its deadlines allow


def serve(
    config: Config,
    listener: socket.socket,
    control: socket.socket | None,
    metrics: socket.socket | None,
    *,
    daemonised: bool,
    received: Iterable[int],
    ready: Callable[[], None],
    remove_socket: Callable[[], None],
    remove_control: Callable[[], None],
    after_crash: bool,
    users: int,
) -> int:
    """As `service.serve`, by `config.workers` workers. users: how many keys the table has, which is not looked at."""
    set_up_log(config.log, daemonised=daemonised, with_pid=True)
    setproctitle.setproctitle(f"lmtp-proxy: supervisor of {config.workers} workers [{config.path}]")
    places = os.memfd_create("lmtp-proxy hold")
    settings = WorkerSettings(
        config=config.path,
        listener=listener.fileno(),
        channel=-1,
        places=places,
        number=0,
        workers=config.workers,
        max_clients=config.max_clients,
        daemonised=daemonised,
        version=__version__,
    )
    team = Team(settings, config.digest)
    stopping = Event()
    for number in (SIGUSR1, SIGHUP):
        gevent.signal_handler(number, team.request_reload)
    for number in (SIGTERM, SIGINT):
        gevent.signal_handler(number, stopping.set)
    for early in received:
        (stopping.set if early in (SIGTERM, SIGINT) else team.request_reload)()
    servers: list[ControlServer | OnDemand | Samples] = []
    application = MergedApplication(team, stopping.is_set, after_crash=after_crash)
    _allow_open_files(config.workers)
    if control is not None:
        servers.append(ControlServer(_cooperative(control), application))
    if metrics is not None:
        servers.append(samples := Samples(application.team_figures.collect))

        def metrics_server(listener: socket.socket) -> ControlServer:
            from lmtp_proxy.web.server import metrics_server  # as in `service`

            return metrics_server(listener, application, samples, config.hostname)

        servers.append(OnDemand("metrics", _cooperative(metrics), (), metrics_server))
    reloads = gevent.spawn(team.run)
    if team.start(stopping):
        for server in servers:
            server.start()
        log_ready(config, listener, users, f", {config.workers} workers")
        ready()
        stopping.wait()
    _log.info("stopping: no new clients are accepted")
    remove_socket()
    listener.close()  # the workers close theirs, and a client that waits is to see that nobody comes
    longest = max((backend.timeouts.final_reply for backend in config.backends.values()), default=0.0)
    ended_well = team.stop(config.timeouts.shutdown + longest + _MARGIN)
    if ended_well:  # else the next start finds it, and warns of what the dead worker may have left
        remove_control()
    for server in servers:
        server.stop()
    reloads.kill()
    if team.failed:
        _log.error("stopped: a worker could not be started")
    else:
        _log.info("stopped")
    finish_log()
    return int(team.failed)


def _cooperative(listener: socket.socket) -> socket.socket:
    own = gevent.socket.socket(listener.family, listener.type, listener.proto, fileno=listener.detach())
    own.setblocking(False)
    return own


def _allow_open_files(workers: int) -> None:
    """Each client of the control socket may need two connections to each worker at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 64 + MAX_CONNECTIONS * (1 + 2 * workers)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
