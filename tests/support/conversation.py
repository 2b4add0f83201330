"""One connection of a scripted backend: reads commands, performs the script's steps, fills the record.

It knows nothing of the listening socket (`backend.py`) and nothing of the proxy.
"""

from __future__ import annotations

import base64
import hmac
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.support.record import BodyReader, SeenConnection, SeenRecipient, SeenTransaction, code_of
from tests.support.script import Await, Close, Drip, Flood, Hang, Pause, Reset, Script, Send, Stall, Step, Steps, say

GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR
MAX_LINE = 1 << 20  # the peer under test never sends such a line; a limit keeps a broken test from eating memory


class Users:
    """How many recipients of one user a store has, over all connections, from RCPT to the final reply or RSET.

    As Dovecot 2.4 counts them: a detail is no other user, and above `limit` RCPT is refused. A message takes `seconds`.
    """

    def __init__(self, limit: int, seconds: float = 0.0) -> None:
        self.limit = limit
        self.seconds = seconds
        self.most: Counter[str] = Counter()
        self.refused = 0
        self._now: Counter[str] = Counter()
        self._lock = threading.Lock()

    def of(self, path: str) -> str:
        local_part, _, domain = path.partition("@")
        return f"{local_part.partition('+')[0]}@{domain}".lower()

    def enter(self, user: str) -> bool:
        with self._lock:
            if self._now[user] >= self.limit:
                self.refused += 1
                return False
            self._now[user] += 1
            self.most[user] = max(self.most[user], self._now[user])
            return True

    def leave(self, user: str) -> None:
        with self._lock:
            self._now[user] -= 1


class Ended(Exception):
    """The conversation is over, from either side."""


class Conversation:
    """One connection: reads commands, performs the script's steps, fills the record."""

    def __init__(
        self,
        sock: socket.socket,
        seen: SeenConnection,
        script: Script,
        keep_body: bool,
        changed: threading.Condition,
        users: Users | None = None,
    ) -> None:
        self._users = users
        self._counted: list[str] = []
        self._sock = sock
        self._seen = seen
        self._script = script
        self._keep_body = keep_body
        self._changed = changed
        self._buffer = b""
        self._current: SeenTransaction | None = None
        self._offer = script.offer
        self._authenticated = script.credentials is None

    def run(self) -> None:
        try:
            self._run()
        finally:
            self._uncount()

    def _run(self) -> None:
        self._perform(self._script.greeting)
        while True:
            line = self._read_line()
            with self._changed:
                self._seen.commands.append(line)
                if self._buffer:
                    self._seen.pipelined.append(line)
                self._changed.notify_all()
            self._dispatch(line)
            with self._changed:
                self._changed.notify_all()

    def _dispatch(self, line: bytes) -> None:
        script = self._script
        verb = line.split(b" ", 1)[0].upper()
        if verb == b"LHLO":
            self._perform(script.lhlo if script.lhlo is not None else self._offer_reply())
        elif verb == b"AUTH":
            self._auth(line)
        elif verb == b"MAIL":
            self._mail(line)
        elif verb == b"RCPT":
            self._rcpt(line)
        elif verb == b"DATA":
            self._data()
        elif verb == b"RSET":
            self._current = None
            self._uncount()
            self._perform(script.rset)
        elif verb == b"QUIT":
            self._perform(script.quit)
        else:
            self._perform(script.other)

    # -- phases ---------------------------------------------------------------------------------------------------

    def _offer_reply(self) -> Steps:
        words = ["fake.test", *self._offer]
        lines = [f"250-{word}" for word in words[:-1]] + [f"250 {words[-1]}"]
        return (Send("".join(line + "\r\n" for line in lines).encode()),)

    def _auth(self, line: bytes) -> None:
        self._seen.auth_lines.append(line)
        if self._script.auth is not None:
            self._perform(self._script.auth)
            return
        words = line.split(b" ")
        mechanism = words[1].upper() if len(words) > 1 else b""
        initial = words[2] if len(words) > 2 else None
        wanted_user, wanted_password = (text.encode() for text in self._script.credentials or ("", ""))
        if mechanism == b"PLAIN":
            token = base64.b64decode(initial if initial is not None else self._challenge(b""))
            good = token.split(b"\0")[1:] == [wanted_user, wanted_password]
        elif mechanism == b"LOGIN":
            user = base64.b64decode(initial if initial is not None else self._challenge(b"User Name\0"))
            good = (user, base64.b64decode(self._challenge(b"Password\0"))) == (wanted_user, wanted_password)
        elif mechanism == b"CRAM-MD5":
            challenge = b"<1.2@fake.test>"
            user, _, digest = base64.b64decode(self._challenge(challenge)).rpartition(b" ")
            good = user == wanted_user and digest == hmac.new(wanted_password, challenge, "md5").hexdigest().encode()
        else:
            self._send(b"504 5.5.4 no such mechanism\r\n")
            return
        if not good:
            self._send(b"501 5.5.4 undefined error!\r\n")  # as Cyrus words a wrong password
            return
        self._authenticated = True
        if self._script.offer_after_auth is not None:
            self._offer = self._script.offer_after_auth
        self._send(b"235 2.7.0 welcome\r\n")

    def _challenge(self, text: bytes) -> bytes:
        self._send(b"334 " + base64.b64encode(text) + b"\r\n")
        line = self._read_line()
        self._seen.auth_lines.append(line)
        return line

    def _mail(self, line: bytes) -> None:
        transaction = SeenTransaction(line, _path(line))
        with self._changed:
            self._seen.transactions.append(transaction)
        if not self._authenticated:
            transaction.answer = self._perform((Send(b"430 Authentication required\r\n"),))
            return
        self._current = transaction
        again = self._script.mail_again if len(self._seen.transactions) > 1 else None
        transaction.answer = self._perform(self._script.mail if again is None else again)
        if code_of(transaction.answer) // 100 != 2:
            self._current = None

    def _rcpt(self, line: bytes) -> None:
        if self._current is None:
            self._send(b"503 5.5.1 need MAIL\r\n")
            return
        recipient = SeenRecipient(line, _path(line))
        with self._changed:
            self._current.recipients.append(recipient)
        if self._users is not None:
            user = self._users.of(recipient.path)
            if not self._users.enter(user):
                text = f"451 4.3.0 <{recipient.path}> Too many concurrent deliveries for user"
                recipient.answer = self._perform(say(text))
                return
            self._counted.append(user)
        again = self._script.rcpt_again if len(self._seen.transactions) > 1 else None
        usual = self._script.rcpt if again is None else again
        recipient.answer = self._perform(self._script.rcpt_by.get(recipient.path, usual))

    def _data(self) -> None:
        script, transaction = self._script, self._current
        if self._script.data_always and transaction is not None and not transaction.accepted:
            self._perform(script.data)
            return
        if transaction is None or not transaction.accepted:
            self._send(b"503 5.5.1 no recipients\r\n")
            return
        body = BodyReader(self._keep_body)
        transaction.body = body  # before the answer: the peer may be quicker than this thread
        again = script.data_again if len(self._seen.transactions) > 1 else None
        transaction.data_answer = self._perform(script.data if again is None else again)
        if not transaction.data_answer.startswith(b"354"):
            transaction.body = None
            return
        rest = self._read_body(transaction, body)
        with self._changed:
            transaction.dot_at = time.monotonic()
            self._changed.notify_all()
        self._buffer = rest
        for position, recipient in enumerate(transaction.accepted):
            by_address = script.final_by.get(recipient.path, script.final)
            recipient.final = b""
            if self._users is not None:
                time.sleep(self._users.seconds)
                self._uncount(self._users.of(recipient.path))
            recipient.final = self._perform(script.final_at.get(position, by_address), recipient)
        self._current = None
        self._perform(script.after_finals)

    def _read_body(self, transaction: SeenTransaction, body: BodyReader) -> bytes:
        trigger = self._script.body
        chunk, self._buffer = self._buffer, b""
        while True:
            if chunk:
                rest = body.feed(chunk)
                if rest is not None:
                    return rest
            if trigger is not None and body.size >= trigger.after:
                steps, trigger = trigger.steps, None
                transaction.early += [step.data for step in steps if isinstance(step, Send | Drip)]
                self._perform(steps, body=body)
            try:
                chunk = self._receive()
            except (Ended, ConnectionError):
                body.flush()
                raise

    def _uncount(self, user: str | None = None) -> None:
        for each in [user] if user is not None else tuple(self._counted):
            assert self._users is not None
            self._users.leave(each)
            self._counted.remove(each)

    # -- the wire -------------------------------------------------------------------------------------------------

    def _perform(self, steps: Steps, recipient: SeenRecipient | None = None, body: BodyReader | None = None) -> bytes:
        sent = b""
        for step in steps:
            if isinstance(step, Send) and body is None and recipient is None and self._readable():
                self._seen.early.append(self._seen.commands[-1] if self._seen.commands else b"")
            more = step.data if isinstance(step, Send | Drip) else b""
            if recipient is not None and isinstance(step, Drip):  # it is there with its last octet
                self._step(Drip(step.data[:-1], step.interval), body)
                step = Send(step.data[-1:])
            if more and recipient is not None:  # recorded before it is sent: the peer may be quicker than this thread
                recipient.final = sent + more
                recipient.final_at = time.monotonic()
            try:
                self._step(step, body)
            except Ended:
                if more and recipient is not None:
                    recipient.final = sent
                raise
            sent += more
        return sent

    def _step(self, step: Step, body: BodyReader | None) -> None:
        if isinstance(step, Send):
            self._send(step.data)
        elif isinstance(step, Drip):
            for index in range(len(step.data)):
                self._send(step.data[index : index + 1])
                self._wait(lambda: False, step.interval)
        elif isinstance(step, Pause):
            self._wait(lambda: False, step.seconds)
        elif isinstance(step, Stall):
            time.sleep(step.seconds)
        elif isinstance(step, Await):
            self._wait(step.event.is_set, 60)
        elif isinstance(step, Flood):
            for _ in range(step.total // len(step.data)):
                self._send(step.data)
        elif isinstance(step, Close):
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._end(reset=True)
            while True:
                chunk = self._receive()
                if body is not None and not body.finished:
                    body.feed(chunk)
        elif isinstance(step, Reset):
            if self._sock.family == socket.AF_INET:
                if self._seen.transactions:
                    self._seen.transactions[-1].reset = True
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise Ended
        elif isinstance(step, Hang):
            self._wait(lambda: False, 120)
            self._end()

    def _wait(self, enough: Callable[[], bool], seconds: float) -> None:
        poll = select.poll()
        poll.register(self._sock, GONE)
        deadline = time.monotonic() + seconds
        while not enough():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if poll.poll(min(left, 0.02) * 1000):
                self._end()

    def _end(self, reset: bool = False) -> None:
        with self._changed:
            if self._seen.ended is None:
                self._seen.ended = time.monotonic()
                self._seen.was_reset = reset
            self._changed.notify_all()
        raise Ended

    def _readable(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            self._end(reset=True)

    def _receive(self) -> bytes:
        try:
            chunk = self._sock.recv(1 << 18)
        except OSError:
            self._end(reset=True)
            raise AssertionError("unreachable") from None
        if not chunk:
            self._end()
        return chunk

    def _read_line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                raise Ended
            self._buffer += self._receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")


def _path(line: bytes) -> str:
    """The text between the first < and the last > of a MAIL or RCPT line."""
    return line.partition(b"<")[2].rpartition(b">")[0].decode("utf-8", "surrogateescape")
