# SPDX-License-Identifier: GPL-3.0-or-later
"""One answer for all who ask at the same time, and a rest after it: so many clients cost hardly more than one.

An answer is never older than the question. It knows neither what is asked nor by whom.
"""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

import gevent
from gevent.event import AsyncResult
from gevent.lock import BoundedSemaphore

T = TypeVar("T")

_REST = 3.0  # as a part of the time that an answer took, so at most a quarter of all time is spent on them
_REST_LEAST = 0.05  # seconds: to hand out a short answer takes about as long as to make it
_REST_MOST = 5.0  # seconds: what took longer has waited for somebody; a scraper waits for ten


class SharedAnswer(Generic[T]):
    """make: gives the answer of the moment, or raises what all who asked get; may wait."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._next: AsyncResult[T] | None = None
        self._one = BoundedSemaphore(1)

    def __repr__(self) -> str:
        return f"<SharedAnswer {'at rest' if self._next is None else 'asked for'}>"

    def get(self) -> T:
        """An answer that was begun after this call."""
        result = self._next
        if result is None:
            result = self._next = AsyncResult()
            gevent.spawn(self._answer, result)
        return result.get()  # type: ignore[return-value]  # it waits without a limit

    def _answer(self, result: "AsyncResult[T]") -> None:
        with self._one:
            self._next = None  # who comes from now on is not to be told what was before
            began = time.monotonic()
            try:
                result.set(self._make())
            except Exception as error:  # noqa: BLE001  (it is for those who asked)
                result.set_exception(error)
            gevent.sleep(min(max(_REST_LEAST, _REST * (time.monotonic() - began)), _REST_MOST))
