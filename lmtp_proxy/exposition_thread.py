# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written for those who watch is made in a thread, because it takes longer than mail should wait.

It knows neither whose figures they are nor who asks.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from lmtp_proxy.control_application import Text
from lmtp_proxy.control_request import Problem
from lmtp_proxy.exposition import render
from lmtp_proxy.figures import Figures
from lmtp_proxy.late_import import late_import
from lmtp_proxy.one_thread import OneThread

A = TypeVar("A")
T = TypeVar("T")

_imported: list[bool] = []  # True, once that has gone well
_thread = OneThread()  # of its own: prometheus_client is used in no other


def exposed(figures: Figures, accept: str) -> Text:
    """What a scraper gets. accept: see `render`. Raises Problem while prometheus_client cannot be imported."""
    if not _imported:
        try:
            in_thread(_import, None)
        except (ImportError, OSError) as error:
            what = f"prometheus_client cannot be imported: {error}"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, what) from error
        _imported.append(True)
    content_type, octets = in_thread(lambda accept: render(figures, accept), accept)
    return Text(content_type, octets)


def _import(_: None) -> None:
    with late_import():
        import prometheus_client.exposition  # noqa: F401


def in_thread(work: Callable[[A], T], argument: A) -> T:
    """What `work` returns or raises; it may not know gevent. One after the other. Raises Problem if it cannot be."""
    try:
        _thread.prepare()
    except (ImportError, OSError) as error:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"there can be no thread for it: {error}") from error
    outcome = _thread.apply(_caught, (work, argument))
    if isinstance(outcome, _Raised):
        raise outcome.error
    return outcome  # type: ignore[no-any-return]  # what a thread returns is anything


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _caught(work: Callable[[A], T], argument: A) -> "T | _Raised":
    """gevent prints what leaves a thread."""
    try:
        return work(argument)
    except Exception as error:  # noqa: BLE001  (it goes on where the thread is waited for)
        return _Raised(error)
