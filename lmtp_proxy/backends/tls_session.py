# SPDX-License-Identifier: GPL-3.0-or-later
"""The same in TLS: from the first octet (implicit), or behind STARTTLS (RFC 3207, as RFC 2033 section 4 has it).

It fails closed. Nothing but LHLO and STARTTLS is said before TLS, nothing that was heard before counts behind it, and
nothing at all is said to a store that is not the one it should be.
"""

import ssl
import time
from _socket import socket as Socket
from dataclasses import replace

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.backends.session import BackendSession
from lmtp_proxy.backends.tls_peer import Spoken, TlsPeer
from lmtp_proxy.config.values import Backend, TcpAddress
from lmtp_proxy.loop.certificate import Certificate
from lmtp_proxy.loop.late import late_import
from lmtp_proxy.loop.tls import TlsBroken, TlsStream, why
from lmtp_proxy.loop.tls_context import client_context
from lmtp_proxy.text import in_words, iso_time
from lmtp_proxy.wire.client import ClientProtocol, Command
from lmtp_proxy.wire.dot_stuffing import FINAL_DOT

# Seconds for a look at a certificate that was refused, beside those that were spent already.
_LOOK = 5.0


class TlsSession(BackendSession):
    """As BackendSession, in TLS.

    Attributes:
        tls: what is known of the store's.
        spoken: by this connection; None before.
    """

    def __init__(self, backend: Backend, hostname: str, tls: TlsPeer) -> None:
        super().__init__(backend, hostname)
        self.tls = tls
        self.spoken: Spoken | None = None

    def _open(self, sock: Socket) -> None:
        stream = self._start_tls(sock)
        try:
            if self.backend.tls == "implicit":
                self._greet()
            else:
                self._lhlo()
        except BackendError as error:
            # TLS 1.3: what a store has against our certificate comes behind the handshake.
            if isinstance(stream.error, TlsBroken):
                raise BackendError(Failure.TLS, f"{stream.error}{self._about_ours()}") from error
            raise
        if stream.tls is not None and self.spoken is not None:
            self.tls.keep(stream.tls.session, self.spoken)  # a ticket comes behind the handshake, too

    def _start_tls(self, sock: Socket) -> TlsStream:
        stream = self.stream = TlsStream(sock)
        self._deadline = time.monotonic() + self.backend.timeouts.greeting
        if self.backend.tls == "starttls":
            self._greet()
            self._say_starttls(stream)
            # Nothing of what was said so far counts (RFC 3207 section 4.2).
            self.protocol = ClientProtocol()
            self.protocol.expected = ()
            self.esmtp_features = {}
            self.does_esmtp = False
            self.ehlo_resp = None
        self._shake_hands(stream)
        return stream

    def _say_starttls(self, stream: TlsStream) -> None:
        if "starttls" not in self.protocol.offered:
            raise BackendError(Failure.TLS, "it does not offer STARTTLS, and nothing else is said to it")
        self._make_sure_of_silence(stream, "LHLO")
        self.write(self.protocol.command(Command.OTHER, b"STARTTLS"), self._deadline)
        reply = self.read_reply(self._deadline)
        if reply.code != 220:
            raise BackendError(Failure.TLS, f"in reply to STARTTLS: {reply}")
        self._make_sure_of_silence(stream, "STARTTLS")

    def _make_sure_of_silence(self, stream: TlsStream, command: str) -> None:
        """Whoever can write between the two may have said it, to be heard as if it came in TLS."""
        stream.look()
        if self.protocol.partial or stream.received:
            raise BackendError(Failure.TLS, f"it said more than its reply to {command}, in plain text")

    def _shake_hands(self, stream: TlsStream) -> None:
        try:
            stream.start_tls(self._context(), self._name(), self._deadline, self.tls.session())
        except TimeoutError as error:
            raise BackendError(Failure.SILENT, f"TLS handshake: {error}") from error
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise BackendError(Failure.TLS, f"its certificate: {why(error)}{self._about_certificate()}") from error
        except ssl.SSLError as error:
            raise BackendError(Failure.TLS, f"TLS handshake: {why(error)}{_hint(self.backend, error)}") from error
        except OSError as error:
            raise BackendError(Failure.GONE, f"TLS handshake: {in_words(error)}") from error
        self._check(stream)

    def _context(self) -> ssl.SSLContext:
        backend = self.backend
        if self.tls.context is None:
            pinned = bool(backend.tls_fingerprint)
            try:
                with late_import():  # it opens files
                    self.tls.context = client_context(
                        verify=backend.tls_verify and not pinned,
                        name=self._name() is not None,
                        ca=None if backend.tls_ca is None else backend.tls_ca.octets,
                        certificate=None if backend.tls_cert is None else backend.tls_cert.octets,
                        key=None if backend.tls_key is None else backend.tls_key.octets,
                    )
            except ValueError as error:
                raise BackendError(Failure.TLS, f"tls_ca, tls_cert or tls_key {error}") from error
            except OSError as error:
                raise BackendError(Failure.CONNECT, f"TLS: {in_words(error)}") from error
        return self.tls.context

    def _name(self) -> str | None:
        """That the certificate has to be for. None only where any certificate will do, or the one that is known."""
        backend = self.backend
        if backend.tls_name is not None:
            return backend.tls_name.rstrip(".")
        return backend.address.host.partition("%")[0].rstrip(".") if isinstance(backend.address, TcpAddress) else None

    def _check(self, stream: TlsStream) -> None:
        """Raises BackendError unless the certificate is one that is known, where those are configured."""
        tls = stream.tls
        assert tls is not None
        found = _certificate(tls)
        version, cipher = tls.version() or "", (tls.cipher() or ("",))[0]
        self.spoken = self.tls.spoken = Spoken(version, cipher, bool(tls.session_reused), found)
        known = self.backend.tls_fingerprint
        if known and (found is None or not {found.digest, found.key_digest}.intersection(known)):
            digests = "it shows none" if found is None else f"{found.digest}, of its public key {found.key_digest}"
            valid = "" if found is None else _valid(found)
            raise BackendError(Failure.TLS, f"its certificate is not tls_fingerprint: SHA-256 {digests}{valid}")

    def _about_certificate(self) -> str:
        """Of one that was refused. OpenSSL keeps that to itself, so the store is asked for it once more, and told
        nothing; once a minute, because it would be for each mail."""
        if not self.tls.is_described():
            self.tls.about = ""
            backend, times = self.backend, self.backend.timeouts
            look = replace(
                backend,
                tls_verify=False,
                tls_fingerprint=None,
                tls_cert=None,
                tls_key=None,
                timeouts=replace(times, connect=min(_LOOK, times.connect), greeting=min(_LOOK, times.greeting)),
            )
            looking = TlsSession(look, self.local_hostname, TlsPeer())
            try:
                looking._start_tls(looking._connection(self.peer, None))
            except BackendError:
                pass  # what is wrong is known; not from when on
            finally:
                looking.close()
            if looking.spoken is not None and (found := looking.spoken.certificate) is not None:
                self.tls.spoken = looking.spoken
                self.tls.about = _valid(found)
        return self.tls.about

    def _about_ours(self) -> str:
        backend = self.backend
        return " (there is no tls_cert)" if backend.tls_cert is None else f" (tls_cert is {backend.tls_cert})"

    def send_now(self, octets: bytes) -> int:
        """See BackendSession. The final dot is in a record of its own: none of it goes out by halves."""
        stream = self._open_stream()
        assert isinstance(stream, TlsStream)
        try:
            return stream.send_apart(octets, len(FINAL_DOT))
        except OSError as error:
            raise BackendError(Failure.GONE, f"write: {in_words(error)}") from error


def _certificate(tls: ssl.SSLObject) -> Certificate | None:
    """What the peer has shown; None where nobody can read that."""
    der = tls.getpeercert(binary_form=True)
    try:
        return None if der is None else Certificate.read(der)
    except ValueError:
        return None


def _valid(found: Certificate) -> str:
    dates = f"valid from {iso_time(found.begins)} until {iso_time(found.ends)}"
    return f" ({found.subject}, issued by {found.issuer}, {dates})"


def _hint(backend: Backend, error: ssl.SSLError) -> str:
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return "; it does not speak TLS at once: tls: starttls?" if backend.tls == "implicit" else ""
    return ""
