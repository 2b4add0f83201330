# SPDX-License-Identifier: GPL-3.0-or-later
"""What the supervisor runs as a process of its own: loads the configuration, and then serves as one of several.

Not for operators: `python3 -m lmtp_proxy.workers.worker SETTINGS`. As in `cli`, gevent comes after the configuration.
"""

import os
import signal
import socket
import sys

from lmtp_proxy import __version__
from lmtp_proxy.config.loading import load
from lmtp_proxy.config.values import ConfigError
from lmtp_proxy.generations.installed import another
from lmtp_proxy.start.signals import RELOAD_SIGNALS
from lmtp_proxy.workers.settings import worker_settings


def main(text: str) -> int:
    """Serve; returns the exit status: 0, or 1 if it cannot, which the supervisor is told."""
    for number in RELOAD_SIGNALS:  # are for the supervisor, but `pkill` finds us, too
        signal.signal(number, signal.SIG_IGN)
    settings = worker_settings(text)
    for handle in (*settings.listeners, settings.channel, settings.places):
        os.set_inheritable(handle, False)
    channel = socket.socket(fileno=settings.channel)
    try:
        if settings.version != __version__:
            raise ConfigError((another(__version__, settings.version),))
        config = load(settings.config)
    except ConfigError as error:
        from lmtp_proxy.workers.channel import say

        say(channel, list(error.errors))
        return 1
    from lmtp_proxy.workers import service as worker_service

    worker_service.serve(config, settings, channel)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
