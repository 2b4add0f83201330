# SPDX-License-Identifier: GPL-3.0-or-later
"""Remembers what each mailbox got from which backend, and what waits for it in the client's queue: `config.receipts`.

A delivery only leaves a note here. Each second the notes are added up and written in a thread, so that no disk delays
mail; whoever asks has them written first. What cannot be written is kept, up to a bound, and mail goes on. Nothing is
done while nothing happens.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import gevent
from gevent.lock import BoundedSemaphore

from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.loop.late import OneThread
from lmtp_proxy.receipts.batch import Batch, Json, ReceiptsError
from lmtp_proxy.text import printable
from lmtp_proxy.wire.reply import Reply

if TYPE_CHECKING:
    from lmtp_proxy.receipts.file import ReceiptsFile

_log = logging.getLogger(__name__)
_now = time.time

_INTERVAL = 1.0  # seconds
_AGAIN = 5.0  # seconds after a failure
_MAX_NOTES = 50_000  # while the thread hangs in a dead disk: about 50 MB
_WHY = 300  # characters
_LAST_WORDS = 10.0  # seconds that a stop waits for the disk


class _Refused(NamedTuple):
    """A recipient for whom the client was told something else than 2xx.

    Attributes:
        reply: None where nobody was there to be told.
        queue_id: see Envelope.
        why: what is known beside the reply, escaped.
    """

    mailboxes: Sequence[str]
    reply: Reply | None
    when: float
    queue_id: str | None
    why: str


# A delivery: its recipients, their replies, the backend, when it ended, the queue id. Those without a reply are none of
# it; None for replies: it is uncertain for all of them. There are many, and a named tuple takes thrice the time.
_Ended: TypeAlias = tuple[Sequence[Destination], Sequence[Reply] | None, str, float, str | None]
_Note: TypeAlias = _Ended | _Refused


class Receipts:
    """All receipts of the process.

    Args:
        path: of the file, None while none are kept.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._notes: list[_Note] = []
        self._lost: float | None = None  # since when notes were thrown away
        self._armed = False
        self._failing = False
        self._thread = OneThread()
        self._one = BoundedSemaphore()
        self._writer = _Writer()
        self._over = False
        if path is not None:
            self._arm(0.0)  # what the process before has left undone is to be noticed now

    def __repr__(self) -> str:
        return f"<Receipts in {self.path}, {len(self._notes)} notes>"

    # --- what happens ------------------------------------------------------------------------------------------------

    def delivered(
        self, destinations: Sequence[Destination], replies: Sequence[Reply], backend: str, queue_id: str | None
    ) -> None:
        """The final replies for the first of these recipients. Those that are no 2xx come by `refused`, too."""
        if self.path is not None:
            self._notes.append((destinations, replies, backend, _now(), queue_id))
            if not self._armed or len(self._notes) > _MAX_NOTES:
                self._arm(_INTERVAL)

    def uncertain(self, destinations: Sequence[Destination], backend: str, queue_id: str | None) -> None:
        """The final dot went out for these recipients, and no reply came."""
        if self.path is not None:
            self._notes.append((destinations, None, backend, _now(), queue_id))
            self._arm(_INTERVAL)

    def refused(self, destination: Destination, reply: Reply | None, queue_id: str | None, why: str = "") -> None:
        """The client was told something else than 2xx, so the message waits in its queue, or has bounced.

        Args:
            reply: None if the client went away.
            why: what is known beside it, escaped.
        """
        if self.path is not None:
            self._notes.append(_Refused(destination.route.mailboxes, reply, _now(), queue_id, why))
            self._arm(_INTERVAL)

    # --- what an operator asks ---------------------------------------------------------------------------------------

    def read(self, mailboxes: Mapping[str, str]) -> Json:
        """See ReceiptsFile.read; everything until the call is in it. Raises ReceiptsError."""
        answer = self._in_thread(mailboxes)
        if isinstance(answer, ReceiptsError):
            raise answer
        if answer is None:  # rather than one that reads as: nothing was delivered to anybody
            raise ReceiptsError("lmtp-proxy is stopping: ask again once it has been started")
        return answer

    def generation_changed(self, path: str | None) -> None:
        """Keep them there from now on. What came before goes to where it was kept."""
        if path != self.path:
            self.path = path
            self._arm(0.0)

    def stop(self) -> None:
        """Write what is left, for some seconds at most. Nothing comes any more."""
        self._over = True
        if not self._thread.used and self.path is None:
            return
        gevent.with_timeout(_LAST_WORDS, self._in_thread, None, timeout_value=None)

    # --- the file ----------------------------------------------------------------------------------------------------

    def _arm(self, seconds: float) -> None:
        if len(self._notes) > _MAX_NOTES:
            self._lost = self._lost or _when(self._notes[0])
            self._notes.clear()
        if not self._armed or not seconds:
            self._armed = True
            gevent.spawn_later(seconds, self._write)

    def _write(self) -> None:
        self._in_thread(None)

    def _in_thread(self, mailboxes: Mapping[str, str] | None) -> Json | ReceiptsError | None:
        """Write all notes there are, and then read."""
        with self._one:
            self._armed = False
            try:
                self._thread.prepare()
            except (ImportError, OSError) as failed:
                error = ReceiptsError(f"there can be no thread to write them: {failed}")
                self._tell(error)
                return error
            notes, self._notes = self._notes, []
            lost, self._lost = self._lost, None
            work = (self.path, notes, lost, mailboxes, self._over)
            answer = self._thread.apply(self._writer.work, work)
            self._tell(answer if isinstance(answer, ReceiptsError) else None)
            return answer

    def _tell(self, error: ReceiptsError | None) -> None:
        """Log a trouble once when it begins, and once when it is over."""
        if error is not None:
            if not self._failing:
                what = "mail goes on, and what is to be written is kept for now"
                _log.error("receipts: %s; %s", error, what, exc_info=error.bug)
            self._failing = True
            if not self._over:
                self._arm_again()
        elif self._failing:
            self._failing = False
            _log.info("receipts: %s can be written again", self.path)

    def _arm_again(self) -> None:
        if not self._armed:
            self._armed = True
            gevent.spawn_later(_AGAIN, self._write)


class _Writer:
    """What runs in the thread: no gevent, no log."""

    def __init__(self) -> None:
        self._file: ReceiptsFile | None = None  # whose import takes a megabyte, which few need
        self._batch = Batch()

    def work(
        self,
        path: str | None,
        notes: Sequence[_Note],
        lost: float | None,
        mailboxes: Mapping[str, str] | None,
        over: bool,
    ) -> Json | ReceiptsError | None:
        """An error is returned, because gevent prints those that leave a thread."""
        now = time.time()
        try:
            if lost is not None:
                self._batch.drop(lost)
            for note in notes:
                self._add(note)
            self._batch.limit(now)
            self._write(path, now, over)
            return None if mailboxes is None or self._file is None else self._file.read(mailboxes, now)
        except ReceiptsError as error:
            return error
        except Exception as error:  # noqa: BLE001  (an error of ours may cost receipts, never mail)
            internal = ReceiptsError(f"internal error: {error!r}")
            internal.bug = error
            return internal

    def _add(self, note: _Note) -> None:
        batch = self._batch
        if isinstance(note, _Refused):
            mailboxes, reply, why = note.mailboxes, note.reply, note.why
            if reply is not None and reply.code >= 500:
                if note.queue_id:
                    batch.settle(mailboxes, note.queue_id)
                return
            if reply is not None:
                said = printable(reply.in_one_line)
                why = f"{said}; {why}" if why else said
            batch.defer(mailboxes, note.queue_id, note.when, why[:_WHY])
            return
        destinations, replies, backend, when, queue_id = note
        if replies is None:
            for destination in destinations:
                batch.deliver(destination.route.mailboxes, backend, when, queue_id, uncertain=True)
            return
        for destination, reply in zip(destinations, replies, strict=False):
            if reply.positive:
                batch.deliver(destination.route.mailboxes, backend, when, queue_id)

    def _write(self, path: str | None, now: float, over: bool) -> None:
        """Write all there is to the file at `path`.

        Args:
            over: nothing comes any more.
        """
        file, self._file = self._file, None
        if file is not None and file.replaced:
            file.abandon()
            file = None
        if file is not None and file.path != path:
            try:
                self._flush(file, now)
                file.close(now, mail_goes_on=True)
            except ReceiptsError:  # perhaps that is why there is another one now, which gets it all
                file.abandon()
            file = None
        if path is None:
            self._batch = Batch()
            return
        if file is None:
            try:
                from lmtp_proxy.receipts.file import ReceiptsFile
            except ImportError as error:
                raise ReceiptsError(f"this Python cannot use SQLite: {error}") from error
            file = ReceiptsFile(path, now)
        self._file = file
        self._flush(file, now)
        if over:
            self._file = None
            file.close(now, mail_goes_on=False)

    def _flush(self, file: "ReceiptsFile", now: float) -> None:
        if self._batch:
            file.write(self._batch, now)
            self._batch = Batch()


def _when(note: _Note) -> float:
    return note.when if isinstance(note, _Refused) else note[3]
