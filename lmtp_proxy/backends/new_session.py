# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes conversations with a backend, of the kind it wants; what they need is loaded with the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from lmtp_proxy.backends.failure import BackendError, Failure
from lmtp_proxy.backends.tls_peer import TlsPeer
from lmtp_proxy.config.values import Backend
from lmtp_proxy.loop.late import late_import
from lmtp_proxy.text import in_words

if TYPE_CHECKING:
    from lmtp_proxy.backends.session import BackendSession
    from lmtp_proxy.backends.tls_session import TlsSession


def new_session(backend: Backend, hostname: str, tls: TlsPeer | None) -> BackendSession:
    """One that was not started. tls: None without. Raises BackendError where it cannot be loaded."""
    return (_conversation() if tls is None else _secured(tls))(backend, hostname)


def _conversation() -> type[BackendSession]:
    """Loaded when there is mail: it brings smtplib, with 6 MB that who has none does without. Raises BackendError."""
    global _session
    if _session is None:
        with _loading():
            from lmtp_proxy.backends.session import BackendSession
        _session = BackendSession
    return _session


_session: type[BackendSession] | None = None


def _secured(tls: TlsPeer) -> Callable[[Backend, str], BackendSession]:
    """The same, in TLS."""
    global _tls_session
    if _tls_session is None:
        with _loading():
            from lmtp_proxy.backends.tls_session import TlsSession
        _tls_session = TlsSession
    return partial(_tls_session, tls=tls)


_tls_session: type[TlsSession] | None = None


@contextmanager
def _loading() -> Iterator[None]:
    try:
        with late_import():
            yield
    except OSError as error:
        raise BackendError(Failure.CONNECT, f"connect: {in_words(error)}") from error
