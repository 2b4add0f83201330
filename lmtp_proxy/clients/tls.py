# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS with clients, by one configuration: the handshake, whether the client's certificate may deliver, what is counted.

A step of a handshake may take long: RSA with 4096 bits signs in 3 ms, a group that the client chooses (ffdhe8192) takes
twice 5 (measured, OpenSSL 3.0). So each is done in a thread, one after the other, while mail goes on.
"""

import logging
import re
import ssl
import time
from _socket import socket as Socket
from dataclasses import dataclass
from typing import Any

from lmtp_proxy.config.values import ListenerTls
from lmtp_proxy.counts import Tallies
from lmtp_proxy.loop.certificate import Certificate
from lmtp_proxy.loop.late import OneThread, Unavailable
from lmtp_proxy.loop.stream import Stream
from lmtp_proxy.loop.tls import TlsStream, why
from lmtp_proxy.loop.tls_context import server_context
from lmtp_proxy.text import MAX_TEXT, shown

_log = logging.getLogger(__name__)
_PART = re.compile(r"(?:^|, )(?:[A-Z]+|[0-9.]+)=")  # of a subject, as Certificate writes it
_thread = OneThread()


@dataclass(frozen=True, slots=True)
class SpokenTls:
    """What one client speaks.

    Attributes:
        version, cipher: as OpenSSL calls them.
        subject: of its certificate, escaped; None if it has shown none.
        allowed: it may deliver, as far as its certificate is concerned.
    """

    version: str
    cipher: str
    subject: str | None
    allowed: bool = True

    def __str__(self) -> str:
        """`TLSv1.3, TLS_AES_256_GCM_SHA384, CN=mx1.example.org`."""
        text = f"{self.version}, {self.cipher}"
        return text if self.subject is None else f"{text}, {self.subject}"


class ClientTls:
    """For all clients of one configuration.

    Raises ValueError, which says what is wrong with the octets, and OSError.

    Attributes:
        keys: the configuration.
    """

    def __init__(self, keys: ListenerTls, tallies: Tallies) -> None:
        self.keys = keys
        self._tallies = tallies
        self._context = server_context(
            certificate=keys.cert.octets, key=keys.key.octets, ca=None if keys.ca is None else keys.ca.octets
        )
        allowed = keys.allow_subjects or ()
        self._subjects = frozenset(text for text in allowed if "=" in text)
        self._names = frozenset(text.lower() for text in allowed if "=" not in text)

    def __repr__(self) -> str:
        return f"<ClientTls {'implicit' if self.keys.implicit else 'starttls'} {self.keys.cert}>"

    def stream(self, sock: Socket) -> TlsStream:
        """One on which `shake_hands` can be called."""
        return TlsStream(sock)

    def note(self, session: str, peer: str, reason: str, text: str) -> None:
        """A client goes without mail. reason: a counter of Tallies."""
        setattr(self._tallies, reason, getattr(self._tallies, reason) + 1)
        _log.warning("%s: no TLS with %s: %s", session, peer, text)

    def shake_hands(self, stream: Stream, session: str, peer: str, seconds: float) -> SpokenTls:
        """Raises OSError where no TLS comes about, which is logged and counted then. session, peer: for the log."""
        assert isinstance(stream, TlsStream)
        try:
            stream.accept_tls(self._context, time.monotonic() + seconds, _step)
        except TimeoutError as error:
            self.note(session, peer, "silent", f"{error} ({seconds:g} s)")
            raise
        except ssl.SSLCertVerificationError as error:
            self.note(session, peer, "certificate", f"its certificate: {why(error)}")
            raise
        except ssl.SSLError as error:
            self.note(session, peer, "broken", why(error))
            raise
        except OSError as error:
            self.note(session, peer, "closed", str(error))
            raise
        except Unavailable as error:
            self.note(session, peer, "broken", str(error))
            raise ConnectionError(str(error)) from error
        return self._judged(stream, session, peer)

    def _judged(self, stream: TlsStream, session: str, peer: str) -> SpokenTls:
        tls = stream.tls
        assert tls is not None
        self._tallies.in_tls += 1
        version, cipher = tls.version() or "", (tls.cipher() or ("",))[0]
        if self.keys.ca is None:
            return self._said(session, peer, SpokenTls(version, cipher, None))
        der = tls.getpeercert(binary_form=True)
        if der is None:
            self.note(session, peer, "no_certificate", "it has shown no certificate")
            return SpokenTls(version, cipher, None, allowed=False)
        try:
            whole = Certificate.read(der).subject
            is_allowed = self.keys.allow_subjects is None or self._is_allowed(whole, tls)
        except ValueError as error:
            self.note(session, peer, "subject", f"its certificate cannot be read: {error}")
            return SpokenTls(version, cipher, None, allowed=False)
        subject = shown(whole, MAX_TEXT)
        if not is_allowed:
            self.note(session, peer, "subject", f"its certificate's subject is not in allow_subjects: {subject}")
            return SpokenTls(version, cipher, subject, allowed=False)
        return self._said(session, peer, SpokenTls(version, cipher, subject))

    def _is_allowed(self, subject: str, tls: ssl.SSLObject) -> bool:
        """Raises ValueError."""
        found: dict[str, Any] = dict(tls.getpeercert() or {})
        parts = [part for parts in found.get("subject", ()) for part in parts]
        # A value may hold what looks like another part of the subject.
        if subject in self._subjects and len(_PART.findall(subject)) == len(parts):
            return True
        names = [value for kind, value in parts if kind == "commonName"]
        names += [value for kind, value in found.get("subjectAltName", ()) if kind == "DNS"]
        return any(name.lower() in self._names for name in names)

    def _said(self, session: str, peer: str, spoken: SpokenTls) -> SpokenTls:
        _log.info("%s: TLS with %s: %s", session, peer, spoken)
        return spoken


def _step(tls: ssl.SSLObject) -> None:
    """One of a handshake. Raises as SSLObject.do_handshake does, and Unavailable."""
    _thread.outcome(ssl.SSLObject.do_handshake, tls)
