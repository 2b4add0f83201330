# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written for those who watch is made in a thread, because it takes longer than mail should wait.

It knows neither whose figures they are nor who asks.
"""

from collections.abc import Callable
from typing import TypeVar

from lmtp_proxy.figures.exposition import render
from lmtp_proxy.figures.figures import Figures
from lmtp_proxy.loop.late_import import late_import
from lmtp_proxy.loop.one_thread import OneThread, Unavailable

A = TypeVar("A")
T = TypeVar("T")

_imported: list[bool] = []  # True, once that has gone well
_thread = OneThread()  # of its own: prometheus_client is used in no other


def exposed(figures: Figures, accept: str) -> tuple[str, bytes]:
    """The content type and the text that a scraper gets. accept: see `render`.

    Raises Unavailable while prometheus_client cannot be imported.
    """
    if not _imported:
        try:
            in_thread(_import, None)
        except (ImportError, OSError) as error:
            raise Unavailable(f"prometheus_client cannot be imported: {error}") from error
        _imported.append(True)
    return in_thread(lambda accept: render(figures, accept), accept)


def _import(_: None) -> None:
    with late_import():
        import prometheus_client.exposition  # noqa: F401


def in_thread(work: Callable[[A], T], argument: A) -> T:
    """What `work` returns or raises; it may not know gevent. One after the other. Raises Unavailable."""
    return _thread.outcome(work, argument)
