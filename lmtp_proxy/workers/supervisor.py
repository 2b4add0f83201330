# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that `lmtp-proxy` is with `workers: N`: it serves no mail, but has N workers do so, and speaks for them.

It stays small and out of the way of mail: a worker accepts clients, delivers and logs by itself. The standard library
is not patched here; what waits does so by gevent's own means.
"""

import logging
import os
import socket

import gevent
from gevent.event import Event

from lmtp_proxy import __version__
from lmtp_proxy.control.server import ControlServer
from lmtp_proxy.control.state import MAX_CONNECTIONS
from lmtp_proxy.figures.samples import Samples
from lmtp_proxy.generations.following import follow
from lmtp_proxy.log import finish_log, set_up_log
from lmtp_proxy.loop.late import OnDemand
from lmtp_proxy.loop.process import allow_open_files, cooperative, every, show_title
from lmtp_proxy.start.ready import log_ready
from lmtp_proxy.start.signals import handle_signals
from lmtp_proxy.start.start import Start
from lmtp_proxy.workers.merged import MergedApplication
from lmtp_proxy.workers.settings import WorkerSettings
from lmtp_proxy.workers.team import Team

_log = logging.getLogger(__name__)

_OTHER_FILES = 64  # log, loop, workers
_MARGIN = 30.0  # seconds more for a worker to end than its deadlines allow


def serve(start: Start) -> int:
    """As `service.serve`, by `config.workers` workers."""
    config = start.config
    set_up_log(config.log, daemonised=start.daemonised, with_pid=True)
    show_title(f"lmtp-proxy: supervisor of {config.workers} workers [{config.path}]")
    places = os.memfd_create("lmtp-proxy hold")
    settings = WorkerSettings(
        config=config.path,
        listeners=[each.socket.fileno() for each in start.mail],
        addresses=start.addresses,
        channel=-1,
        places=places,
        number=0,
        workers=config.workers,
        max_clients=config.max_clients,
        daemonised=start.daemonised,
        version=__version__,
    )
    team = Team(settings, config.in_force)
    stopping = Event()
    alive = every(start.notifier.alive_every, start.notifier.alive)
    team.tell = start.notifier.status
    handle_signals(start.received, gevent.signal_handler, team.request_reload, stopping.set)
    servers: list[ControlServer | OnDemand | Samples] = []
    application = MergedApplication(team, stopping.is_set, after_crash=start.after_crash)
    # Each client of the control socket may need two connections to each worker at once.
    allow_open_files(_OTHER_FILES + MAX_CONNECTIONS * (1 + 2 * config.workers))
    if start.control is not None:
        servers.append(ControlServer(cooperative(start.control.socket), application))
    if start.metrics is not None:
        servers.append(samples := Samples(application.team_figures.collect))

        def metrics_server(listener: socket.socket) -> ControlServer:
            from lmtp_proxy.web.server import metrics_server  # as in `service`

            return metrics_server(listener, application, samples, config.hostname, stopping.is_set)

        servers.append(OnDemand("metrics", cooperative(start.metrics.socket), (), metrics_server))
    reloads = gevent.spawn(team.run)
    following = follow(team, config)
    if team.start(stopping):
        for server in servers:
            server.start()
        log_ready(config, start.mail, start.users, f", {config.workers} workers")
        start.ready()
        stopping.wait()
    _log.info("stopping: no new clients are accepted")
    start.notifier.stopping()
    start.remove_mail()
    for each in start.mail:
        each.socket.close()  # the workers close theirs, and a client that waits is to see that nobody comes
    longest = max((backend.timeouts.final_reply for backend in config.backends.values()), default=0.0)
    ended_well = team.stop(config.timeouts.shutdown + longest + _MARGIN)
    if ended_well:  # else the next start finds it, and warns of what the dead worker may have left
        start.remove_control()
    for server in servers:
        server.stop()
    if following is not None:
        following.stop()
    reloads.kill()
    if alive is not None:
        alive.kill()
    if team.failed:
        _log.error("stopped: a worker could not be started")
    else:
        _log.info("stopped")
    finish_log()
    return int(team.failed)
