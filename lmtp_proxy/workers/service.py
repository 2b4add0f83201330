# SPDX-License-Identifier: GPL-3.0-or-later
"""One worker: a process that serves mail on the listening sockets it was given, and answers to its supervisor alone.

It lets clients in when the supervisor says so, and nobody any more when the supervisor has died: nobody could tell it
of a change of routes then. What concerns the whole proxy is logged by the supervisor, once.
"""

import logging
import signal
import socket

import gevent

from lmtp_proxy.config.values import Config
from lmtp_proxy.control import application as control_application
from lmtp_proxy.control import request as control_request
from lmtp_proxy.control.application import Json, Resources
from lmtp_proxy.control.request import Request
from lmtp_proxy.control.resources import Application
from lmtp_proxy.delivery.parking import Parking, SharedPlaces
from lmtp_proxy.generations import manager
from lmtp_proxy.log import finish_log
from lmtp_proxy.loop.process import cooperative
from lmtp_proxy.service import Service, begin_log, log_greenlets_left
from lmtp_proxy.start.signals import STOP_SIGNALS
from lmtp_proxy.workers.channel import ChannelServer, say
from lmtp_proxy.workers.settings import WorkerSettings

_log = logging.getLogger(__name__)


def serve(config: Config, settings: WorkerSettings, channel: socket.socket) -> None:
    """Serve until a stop signal or the end of the supervisor, and end after the last session.

    Args:
        channel: the worker's end of a WorkerChannel.
    """
    begin_log(config, daemonised=settings.daemonised, with_pid=True)
    _log_what_concerns_one()
    service = Service(
        config,
        [socket.socket(fileno=listener) for listener in settings.listeners],
        settings.addresses,
        max_clients=settings.max_clients,
        name=f"lmtp-proxy: worker {settings.number + 1}",
        parking=Parking(SharedPlaces(settings.places)),
        share=settings.share,
    )
    for number in STOP_SIGNALS:
        gevent.signal_handler(number, service.stopping.set)
    reloads = gevent.spawn(service.manager.run)

    def accept(_: Request) -> Json:
        if not service.stopping.is_set():
            service.accept()
        return {}

    def withdraw() -> None:
        reloads.kill()
        service.manager.withdraw()
        _log.warning("the supervisor has ended: no new clients are accepted, and nothing more is delivered")
        service.stopping.set()

    more: Resources = {"/accept": {"POST": accept}, "/alive": {"GET": lambda _: {}}}
    application = Application(service.state, more)
    say(channel, [])
    control = ChannelServer(cooperative(channel), application, lambda: gevent.spawn(withdraw))
    control.start()
    service.stopping.wait()
    service.finish()
    control.stop()
    reloads.kill()
    log_greenlets_left()
    finish_log()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _log_what_concerns_one() -> None:
    """Each reload and each request comes to all workers; the supervisor says so once."""
    logging.getLogger(manager.__name__).addFilter(lambda record: record.exc_info is not None)
    for module in (control_application, control_request):
        logging.getLogger(module.__name__).addFilter(lambda record: record.levelno > logging.INFO)
