# SPDX-License-Identifier: GPL-3.0-or-later
"""The signals that a proxy hears, and how none is lost while one handler takes the place of another."""

import signal
from collections.abc import Callable, Iterable

RELOAD_SIGNALS = (signal.SIGUSR1, signal.SIGHUP)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def handle_signals(
    received: Iterable[int],
    handle: Callable[[int, Callable[[], None]], object],
    reload: Callable[[], None],
    stop: Callable[[], None],
) -> None:
    """Have signals call `reload` and `stop`, which must not wait, now also for those that came before.

    Args:
        received: those that came before; it may grow until the new handlers are there.
        handle: installs a handler, gevent.signal_handler for one.
    """
    for number in RELOAD_SIGNALS:
        handle(number, reload)
    for number in STOP_SIGNALS:
        handle(number, stop)
    for early in received:
        (stop if early in STOP_SIGNALS else reload)()
