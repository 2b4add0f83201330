# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the protocol's own refusals are in the log, of one session.

Mail is lost or late for a refused MAIL or RCPT, so each of these has a line in the manner of all deliveries, up to a
number that fills no disk. Other mistakes cost no message: each reply to them stands there once. Of a line that is no
MAIL or RCPT only the verb is shown, because it may hold a password, or be of a body that nobody waited for.
"""

import logging
import re

from lmtp_proxy.delivery.log import log_refused
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.envelope import path_of
from lmtp_proxy.wire.events import Mistake, RefusedCommand
from lmtp_proxy.wire.reply import Reply

_log = logging.getLogger(__name__)
_MOST = 100
"""Lines of one session about messages and recipients; the last one says how many more there were."""
_LONGEST_COMMAND = 200  # octets that are shown
_VERB = re.compile(rb"[A-Za-z]{1,10}")
_PREFIXES = {b"MAIL": b"FROM:", b"RCPT": b"TO:"}


class RefusalLog:
    """Of one session; `end` it when that ends. session, peer: their names in the log."""

    def __init__(self, session: str, peer: str) -> None:
        self._session = session
        self._peer = peer
        self._left = _MOST
        self._more = 0
        self._said: set[bytes] = set()
        self._mail_refused = False

    def note(self, refused: RefusedCommand) -> None:
        """Log it, or count it."""
        command, reply, envelope, last, mistake = refused
        if mistake is Mistake.FOREIGN:
            what = "is no LMTP client: it began with HTTP, a header line or a PROXY header"
            _log.info("%s: closing the connection from %s, which %s", self._session, self._peer, what)
            return
        word, _, arguments = command.partition(b" ")
        verb, arguments = word.upper(), arguments.strip(b" ")
        if verb == b"MAIL":
            self._mail_refused = True
        if (verb in _PREFIXES and mistake is not Mistake.NO_MAIL) or (
            mistake is Mistake.TOO_LONG and envelope is not None
        ):
            self._note_mail(refused, verb, arguments)
        elif mistake is Mistake.NO_MAIL and self._mail_refused:
            pass  # RCPT and DATA behind it in one write; it has a line
        elif mistake is not Mistake.NO_RECIPIENTS:  # each of them has a line
            self._note_mistake(word, reply)
        if last:
            _log.info("%s: closing the connection from %s: %s", self._session, self._peer, say.TOO_MANY_ERRORS)

    def _note_mail(self, refused: RefusedCommand, verb: bytes, arguments: bytes) -> None:
        if not self._left:
            self._more += 1
            return
        self._left -= 1
        command, reply, envelope, *_ = refused
        sender = None if envelope is None else envelope.path
        if verb == b"MAIL":
            sender = path_of(arguments, sender=True)
        recipient = path_of(arguments, sender=False) if verb == b"RCPT" else None
        size = (envelope.size if envelope is not None and verb == b"MAIL" else None) or 0
        if not arguments.upper().startswith(_PREFIXES.get(verb, b"")):
            command = verb
        log_refused(self._session, sender, recipient, size, reply, command[:_LONGEST_COMMAND])

    def _note_mistake(self, word: bytes, reply: Reply) -> None:
        if reply.wire in self._said:
            return
        self._said.add(reply.wire)
        verb = word.decode("ascii").upper() if _VERB.fullmatch(word) else "a command"
        _log.info("%s: refused %s from %s: %s", self._session, verb, self._peer, reply)

    def end(self) -> None:
        """Say how many more refusals there were."""
        if self._more:
            _log.info("%s: %d more refusals of this session are not in the log", self._session, self._more)
