# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a backend gives a final reply for each recipient (RFC 2033 section 4.2), or one for all, as with SMTP.

Some do by mistake: aiosmtpd's LMTP, Mailman on an exception of its own; smtp-server where a recipient comes twice. Who
gets none waits for `final_reply`, is deferred, and comes again, although the mail may be stored: with each try a copy.
"""

import logging
import math
import time

_log = logging.getLogger(__name__)
_IN_A_ROW = 3
# Seconds until a transaction with more than one recipient is tried again; twice as many each time, up to a day. Each
# that fails leaves a copy.
_FIRST_TRY = 3600.0
_LAST_TRY = 86400.0


class PerRecipient:
    """Of one backend, which has given too few replies at least once.

    Attributes:
        limit: how many recipients it should get in a transaction.
    """

    __slots__ = ("_name", "_short", "_told", "_try_after", "_try_at", "limit")

    def __init__(self, name: str) -> None:
        """name: of the backend, for the log."""
        self.limit = math.inf
        self._name = name
        self._short = 0  # transactions in a row
        self._told = False
        self._try_at = math.inf  # time.monotonic
        self._try_after = _FIRST_TRY

    def __repr__(self) -> str:
        return f"<PerRecipient {self._name} short={self._short} limit={self.limit}>"

    def sends(self, of: int) -> None:
        """A message goes out to so many recipients. One of several is enough to see."""
        if of > 1 and self.limit == 2:
            self._stop_trying()

    def gave(self, replies: int, of: int) -> None:
        """A message to `of` recipients is over; so many final replies came."""
        if 0 < replies < of:
            self._gave_too_few(replies, of)
        elif of > 1 and replies == of:
            self._gave_all(of)
        elif self.limit == 1 and time.monotonic() >= self._try_at:
            self.limit = 2

    def _gave_too_few(self, replies: int, of: int) -> None:
        self._short += 1
        if not self._told:
            self._told = True
            _log.warning(
                "backend %s: gave %d of %d final replies: does it answer per recipient (RFC 2033)? "
                "recipients_per_transaction: 1 is the cure",
                self._name,
                replies,
                of,
            )
        if self._short >= _IN_A_ROW and self.limit > 1:
            if self.limit == math.inf:
                _log.warning(
                    "backend %s: gave too few final replies %d times in a row: it gets one recipient in a transaction",
                    self._name,
                    self._short,
                )
            self._stop_trying()

    def _stop_trying(self) -> None:
        self.limit = 1
        self._try_at = time.monotonic() + self._try_after
        self._try_after = min(2 * self._try_after, _LAST_TRY)

    def _gave_all(self, of: int) -> None:
        self._short = 0
        if self.limit < math.inf:
            _log.warning(
                "backend %s: gave %d of %d final replies: it gets as many recipients in a transaction as before",
                self._name,
                of,
                of,
            )
            self.limit, self._told = math.inf, False
            self._try_at, self._try_after = math.inf, _FIRST_TRY
