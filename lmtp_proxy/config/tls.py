# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys that are about TLS. Of a backend: whether it is spoken, who the store has to be, who we are. Of the
listener: who we are, and which clients may deliver.

The files that they name are read with the configuration: a reload reads them again, and no mail waits for a disk. What
is in them is part of no error.
"""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lmtp_proxy.config import types as config_keys
from lmtp_proxy.config.small_file import read_small_file
from lmtp_proxy.config.types import Section
from lmtp_proxy.config.values import Address, Backend, ListenerTls, PemFile, TcpAddress, UnixAddress
from lmtp_proxy.text import iso_time

if TYPE_CHECKING:
    import ssl

KEYS = ("tls", "tls_ca", "tls_name", "tls_fingerprint", "tls_verify", "tls_cert", "tls_key")
LISTENER_KEYS = ("cert", "key", "ca", "required", "implicit", "allow_subjects")
_FILE_MAX = 2**20  # octets; all CAs of a system are a quarter of that
_DIGEST = re.compile("[0-9a-f]{64}")


def with_tls(backend: Backend, section: Section, directory: str) -> Backend:
    """The backend with its keys. directory: which relative paths are in."""
    others = [key for key in KEYS[1:] if key in section]
    tls = section.value("tls", _mode, "no")
    if tls == "no":
        if "tls" in section:
            section.ignore(others, "tls is no")
        for key in others if "tls" not in section else ():
            section.fail(key, "needs tls beside it: write `tls: starttls` or `tls: implicit`")
        return backend
    backend = replace(
        backend,
        tls=tls,
        tls_ca=_file(section, "tls_ca", directory),
        tls_name=section.value("tls_name", config_keys.host, None),
        tls_fingerprint=section.values("tls_fingerprint", _fingerprint) or None,
        tls_verify=section.value("tls_verify", config_keys.boolean, True),
        tls_cert=_file(section, "tls_cert", directory),
        tls_key=_file(section, "tls_key", directory),
    )
    _check_who(section, backend)
    _check_files(section, backend)
    return backend


def _check_who(section: Section, backend: Backend) -> None:
    """That it is said in one way who the store has to be."""
    fingerprint = "tls_fingerprint" in section
    if fingerprint and "tls_ca" in section:
        section.fail("tls_ca", "cannot stand beside tls_fingerprint, which says which certificate it has to be")
    if not backend.tls_verify:
        for key in ("tls_ca", "tls_fingerprint"):
            if key in section:
                section.fail("tls_verify", f"cannot be no beside {key}: take one of the two out")
        what = "whoever answers there gets the mail, and the password: see tls_ca and tls_fingerprint"
        section.note("tls_verify", f"is no, so nobody knows that this is the store: {what}")
    elif not fingerprint and "tls_name" not in section and isinstance(backend.address, UnixAddress):
        section.fail("tls", "needs tls_name or tls_fingerprint beside a socket: there is no host to verify")


def listener_tls(parent: Section, mail: Sequence[Address], directory: str) -> ListenerTls | None:
    """`tls` of the listener; None if there is none, and after a problem. mail: where mail comes in, empty if that is
    not known. directory: which relative paths are in."""
    if "tls" not in parent:
        return None
    section = parent.section("tls", LISTENER_KEYS)
    if section is None:
        return None
    if mail and not any(isinstance(each, TcpAddress) for each in mail):
        parent.ignore(("tls",), "there is no TLS on a unix socket, and socket names no other")
    if "cert" not in section and "key" not in section:
        parent.fail("tls", "needs cert and key: the server's certificate, and its private key, as PEM files")
    certificate, private = _file(section, "cert", directory), _file(section, "key", directory)
    authority = _file(section, "ca", directory)
    implicit = section.value("implicit", config_keys.boolean, False)
    required = section.value("required", config_keys.boolean, False)
    subjects = section.values("allow_subjects", _subject)
    if implicit:
        section.ignore(("required",), "implicit is yes, so there is nothing before TLS")
    elif "ca" in section and not required:
        section.fail("ca", "needs `required: yes` beside it: a client that does without TLS would need no certificate")
    if "allow_subjects" in section:
        if "ca" not in section:
            section.fail("allow_subjects", "needs ca beside it: whom a client's certificate has to come from")
        if subjects == ():
            section.fail("allow_subjects", "would refuse everybody: list subjects, or take it out for all from ca")
    _check_ca(section, "ca", authority)
    _check_pair(section, ("cert", "key"), certificate, private, "clients")
    if certificate is None or private is None:
        return None
    return ListenerTls(certificate, private, authority, required or implicit, implicit, subjects)


def _subject(text: str) -> str:
    """`CN=mx1.example.org, O=Example`, or a name: `mx1.example.org`."""
    if not text.strip():
        raise ValueError("is empty: write a name such as mx1.example.org, or a whole subject")
    return text.strip()


def _check_files(section: Section, keys: Backend) -> None:
    _check_ca(section, "tls_ca", keys.tls_ca)
    _check_pair(section, ("tls_cert", "tls_key"), keys.tls_cert, keys.tls_key, "the store")


def _check_ca(section: Section, key: str, authority: PemFile | None) -> None:
    from lmtp_proxy.loop.tls_context import load_ca

    if authority is not None:
        try:
            load_ca(_context(), authority.octets)
        except OSError as error:
            section.fail(key, f"{authority} {_unusable(error)}")
        except ValueError as error:
            section.fail(key, f"{authority} {error}")


def _check_pair(
    section: Section, names: tuple[str, str], certificate: PemFile | None, private: PemFile | None, peer: str
) -> None:
    """A certificate and its key, under these two names. peer: who is shown it."""
    from lmtp_proxy.loop.tls_context import WrongKey, load_certificate

    for key, other in (names, names[::-1]):
        if key in section and other not in section:
            section.fail(key, f"needs {other} beside it, which may be the same file")
    if certificate is None or private is None:
        return
    try:
        load_certificate(_context(), certificate.octets, private.octets, names[0])
    except WrongKey as error:
        section.fail(names[1], f"{private} {error}")
    except OSError as error:
        section.fail(names[0], f"{certificate} {_unusable(error)}")
    except ValueError as error:
        section.fail(names[0], f"{certificate} {error}")
    else:
        _note_end(section, names[0], certificate, peer)
    if private.mode & 0o007:
        section.note(names[1], f"{private} is open to everybody (mode {private.mode:04o}): chmod 0600, or 0640")


def _unusable(error: OSError) -> str:
    return f"cannot be handed to OpenSSL: {error.strerror}; that takes a file in memory, and /proc"


def _note_end(section: Section, key: str, certificate: PemFile, peer: str) -> None:
    """The peer would refuse it."""
    import ssl

    from lmtp_proxy.loop.certificate import Certificate

    text = certificate.octets.decode("ascii", "replace")
    begin, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    try:
        ends = Certificate.read(ssl.PEM_cert_to_DER_cert(text[begin : end + len(ssl.PEM_FOOTER)])).ends
    except ValueError:
        return
    if ends < time.time():
        section.note(key, f"{certificate} was valid until {iso_time(ends)}: {peer} may refuse it")


def _context() -> "ssl.SSLContext":
    import ssl

    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _file(section: Section, key: str, directory: str) -> PemFile | None:
    """Once read. None after a problem, and if it is not there."""
    path = section.value(key, config_keys.file_path, None)
    if path is None:
        return None
    path = os.path.join(directory, path)
    try:
        octets, mode = read_small_file(path, _FILE_MAX)
    except OSError as error:
        section.fail(key, f"{path} cannot be read: {error.strerror}")
    except ValueError as error:
        section.fail(key, f"{path} {error}")
    else:
        return PemFile(path, octets, mode)
    return None


def _mode(text: str) -> str:
    if text.lower() not in ("no", "starttls", "implicit"):
        raise ValueError(f'must be no, starttls or implicit, not "{text[:60]}"')
    return text.lower()


def _fingerprint(text: str) -> str:
    """A SHA-256 in hex, as openssl writes it or without colons."""
    digest = text.lower().replace(":", "")
    if not _DIGEST.fullmatch(digest):
        raise ValueError("must be a SHA-256 in hex: 64 digits, colons between two of them if you like")
    return digest
