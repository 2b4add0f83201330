# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of one store's TLS: what its last connection spoke, whose certificate that was, what may be resumed.

Made with the pool, before there is mail, so it does without the modules ssl and hashlib.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmtp_proxy.text import MAX_TEXT, iso_time, shown

if TYPE_CHECKING:
    import ssl

    from lmtp_proxy.loop.certificate import Certificate

_DAY = 86400
# Seconds in which a session is resumed: a certificate that was renewed, or revoked by hand, is looked at again then.
_RESUMED_FOR = 3600.0
_DESCRIBED_FOR = 60.0  # seconds in which one refused certificate is not asked for again


@dataclass(frozen=True, slots=True)
class Spoken:
    """What one connection speaks.

    Attributes:
        version, cipher: as OpenSSL calls them.
        resumed: without a certificate of its own; it is that of the session before.
    """

    version: str
    cipher: str
    resumed: bool
    certificate: "Certificate | None"

    def to_json(self) -> dict[str, object]:
        """For an operator; texts of the peer are escaped."""
        found = self.certificate
        return {
            "version": self.version,
            "cipher": self.cipher,
            "resumed": self.resumed,
            "subject": None if found is None else shown(found.subject, MAX_TEXT),
            "issuer": None if found is None else shown(found.issuer, MAX_TEXT),
            "until": None if found is None else iso_time(found.ends),
            "days_left": None if found is None else round((found.ends - time.time()) / _DAY, 1),
            "sha256": None if found is None else found.digest,
            "key_sha256": None if found is None else found.key_digest,
        }


@dataclass(slots=True)
class TlsPeer:
    """Of one store, as it is configured.

    Attributes:
        spoken: by the last connection; None before.
        context: None before.
        about: what is said of the last certificate that was refused.
    """

    spoken: Spoken | None = None
    context: "ssl.SSLContext | None" = None
    about: str = ""
    _session: "ssl.SSLSession | None" = field(default=None, repr=False)
    _until: float = 0.0  # since the epoch: the session is not resumed from then on
    _described: float = 0.0  # time.monotonic

    def to_json(self) -> dict[str, object] | None:
        """For an operator: of the last connection; None before."""
        return None if self.spoken is None else self.spoken.to_json()

    def session(self) -> "ssl.SSLSession | None":
        """To be resumed, if there is one."""
        if time.time() >= self._until:
            self._session = None
        return self._session

    def keep(self, session: "ssl.SSLSession | None", spoken: Spoken) -> None:
        """What can be resumed next; of one that was resumed itself the time goes on."""
        ends = spoken.certificate.ends if spoken.certificate is not None else 0.0
        if not spoken.resumed:
            self._until = min(time.time() + _RESUMED_FOR, ends)
        self._session = session

    def is_described(self) -> bool:
        """`about` is of now; if not, whoever asks is to see to it."""
        now = time.monotonic()
        if self._described and now < self._described + _DESCRIBED_FOR:
            return True
        self._described = now
        return False
