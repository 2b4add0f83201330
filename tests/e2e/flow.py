# SPDX-License-Identifier: GPL-3.0-or-later
"""A steady flow of mail into Postfix: so many messages a second, some of them large, for as long as wanted."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .mail import Message, message, submit
from .postfix import Postfix

SESSIONS = 4
"""Threads that hand mail to Postfix, so that a large message does not stop the flow."""
LARGE_MOST = 200 * 2**20
"""Octets of all large messages together: on a machine that does not keep up, more would only make it worse."""


class Flow:
    """Each message goes to one to three of `users`; every `large_every`-th has `large_size` octets and one recipient.

    What was submitted is in `messages` and `queue_ids`; `users` may be changed at any time.
    """

    def __init__(
        self, postfix: Postfix, name: str, users: Sequence[str], *, rate: float, large_every: int, large_size: int
    ) -> None:
        self.users = users
        self.messages: list[Message] = []
        self.queue_ids: dict[str, str] = {}
        self.seconds = 0.0
        """How long it has flowed, once it has ended."""
        self._postfix = postfix
        self._name = name
        self._rate = rate
        self._large_every = large_every
        self._large_body = (b"x" * 76 + b"\r\n") * (large_size // 78 + 1)
        self._rng = random.Random(name)
        self._lock = threading.Lock()
        self._next = 0
        self._began = 0.0
        self._end = threading.Event()
        self._failures: list[BaseException] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run) for _ in range(SESSIONS)]
        self._began = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in threads:
                thread.join()
            self.seconds = time.monotonic() - self._began
        if self._failures:
            raise self._failures[0]

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    number, item = self._next, self._make(self._next)
                    self._next += 1
                if self._end.wait(max(0.0, self._began + number / self._rate - time.monotonic())):
                    return
                queue_ids = submit(self._postfix, [item])
                with self._lock:
                    self.queue_ids |= queue_ids
                    self.messages.append(item)
        except BaseException as failure:
            self._failures.append(failure)

    def _make(self, number: int) -> Message:
        ident = f"{self._name}-{number}"
        nth, rest = divmod(number + 1, self._large_every)
        if rest == 0 and nth * len(self._large_body) <= LARGE_MOST:
            return message(ident, [self._rng.choice(self.users)], self._large_body)
        return message(ident, self._rng.sample(self.users, self._rng.randint(1, 3)), b"A plain line.\r\n" * 40)
