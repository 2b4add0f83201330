# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys of a backend that are about TLS: whether it is spoken, who the store has to be, who we are.

The files that they name are read with the configuration: a reload reads them again, and no mail waits for a disk. What
is in them is part of no error.
"""

import os
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from lmtp_proxy.config import types as config_keys
from lmtp_proxy.config.small_file import read_small_file
from lmtp_proxy.config.types import Section
from lmtp_proxy.config.values import Backend, PemFile, UnixAddress
from lmtp_proxy.text import iso_time

if TYPE_CHECKING:
    import ssl

KEYS = ("tls", "tls_ca", "tls_name", "tls_fingerprint", "tls_verify", "tls_cert", "tls_key")
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


def _check_files(section: Section, keys: Backend) -> None:
    from lmtp_proxy.loop.tls_context import WrongKey, load_ca, load_certificate

    if keys.tls_ca is not None:
        try:
            load_ca(_context(), keys.tls_ca.octets)
        except OSError as error:
            section.fail("tls_ca", f"{keys.tls_ca} {_unusable(error)}")
        except ValueError as error:
            section.fail("tls_ca", f"{keys.tls_ca} {error}")
    for key, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if key in section and other not in section:
            section.fail(key, f"needs {other} beside it, which may be the same file")
    certificate, private = keys.tls_cert, keys.tls_key
    if certificate is None or private is None:
        return
    try:
        load_certificate(_context(), certificate.octets, private.octets)
    except WrongKey as error:
        section.fail("tls_key", f"{private} {error}")
    except OSError as error:
        section.fail("tls_cert", f"{certificate} {_unusable(error)}")
    except ValueError as error:
        section.fail("tls_cert", f"{certificate} {error}")
    else:
        _note_end(section, certificate)
    if private.mode & 0o007:
        section.note("tls_key", f"{private} is open to everybody (mode {private.mode:04o}): chmod 0600, or 0640")


def _unusable(error: OSError) -> str:
    return f"cannot be handed to OpenSSL: {error.strerror}; that takes a file in memory, and /proc"


def _note_end(section: Section, certificate: PemFile) -> None:
    """A store would refuse it."""
    import ssl

    from lmtp_proxy.loop.certificate import Certificate

    text = certificate.octets.decode("ascii", "replace")
    begin, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    try:
        ends = Certificate.read(ssl.PEM_cert_to_DER_cert(text[begin : end + len(ssl.PEM_FOOTER)])).ends
    except ValueError:
        return
    if ends < time.time():
        section.note("tls_cert", f"{certificate} was valid until {iso_time(ends)}: the store may refuse it")


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
