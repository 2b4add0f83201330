# SPDX-License-Identifier: GPL-3.0-or-later
"""What TLS is spoken with: an ssl context from octets that were read before, by whoever may read the files.

OpenSSL takes a certificate with its key from a file only. So the octets are put into one that has no name and is in no
file system, which works for a process that may not read the files any more, too.
"""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager


def client_context(
    *, verify: bool, name: bool, ca: bytes | None, certificate: bytes | None, key: bytes | None
) -> ssl.SSLContext:
    """TLS 1.2 at least; no renegotiation. Raises ValueError, which says what is wrong with the octets, and OSError.

    Args:
        verify: the peer's certificate has to come from a CA.
        name: and to be for the name that is asked for.
        ca: those CAs, as PEM; None for the system's.
        certificate, key: ours, as PEM, both or neither.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.check_hostname = verify and name
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if verify and ca is None:
        context.set_default_verify_paths()
    elif verify and ca is not None:
        load_ca(context, ca)
    if certificate is not None and key is not None:
        load_certificate(context, certificate, key)
    return context


def server_context(*, certificate: bytes, key: bytes, ca: bytes | None) -> ssl.SSLContext:
    """As `client_context`, for a server.

    A client that shows a certificate has to show one from these CAs; one that shows none is for the caller to judge.

    Args:
        ca: as PEM; None where no certificate is asked for.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 1
    load_certificate(context, certificate, key, "cert")
    if ca is not None:
        load_ca(context, ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def load_ca(context: ssl.SSLContext, octets: bytes) -> None:
    """Raises ValueError."""
    with _file_of(octets) as path:
        try:
            context.load_verify_locations(path)
        except ssl.SSLError:
            raise ValueError("holds no certificate (PEM: -----BEGIN CERTIFICATE-----)") from None


def load_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes, name: str = "tls_cert") -> None:
    """Raises ValueError, which quotes nothing of the two; WrongKey where it is about the key. name: the certificate's
    key in the configuration."""
    with _file_of(certificate) as path, _file_of(key) as key_path:
        probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            probe.load_verify_locations(path)
        except ssl.SSLError:
            raise ValueError("holds no certificate (PEM: -----BEGIN CERTIFICATE-----)") from None
        try:
            context.load_cert_chain(path, key_path, _refuse_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise WrongKey(f"is not the key of {name}") from None
            if error.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
                weak = error.reason.lower().replace("_", " ")
                raise ValueError(f"is too weak for this system's OpenSSL: {weak}") from None
            raise WrongKey("holds no private key (PEM: -----BEGIN PRIVATE KEY-----)") from None


class WrongKey(ValueError):
    """A key that cannot be used; the certificate may be as it should."""


def _refuse_password() -> str:
    raise WrongKey("is encrypted: nobody could type its password at a start; store it without one, mode 0600")


@contextmanager
def _file_of(octets: bytes) -> Iterator[str]:
    """A path by which this process can open the octets."""
    handle = os.memfd_create("lmtp-proxy TLS")
    try:
        os.write(handle, octets)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)
