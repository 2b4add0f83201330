# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process that serves imports only when there is work for it, by name: to import it is what is put off.

Here is the one list of it. Who gives up privileges imports all of it first, as the other user may not be able to read
it. `tests/unit/start/test_late_modules.py` looks into the modules that serve for what they import late.
"""

from lmtp_proxy.config.values import Config

FOR_MAIL = ("lmtp_proxy.backends.session",)
FOR_TLS = (
    *("lmtp_proxy.backends.tls_session", "lmtp_proxy.loop.certificate", "lmtp_proxy.loop.tls_context"),
    "lmtp_proxy.clients.tls",
)
FOR_A_THREAD = ("gevent.threadpool",)
READS_CONFIG = "lmtp_proxy.config.read"
FOR_KEYS = ("idna", "unicodedata")
FOR_RECEIPTS = ("lmtp_proxy.receipts.file",)
FOR_TABLE = ("lmtp_proxy.table.replica",)
FOR_CONTROL = (
    *FOR_A_THREAD,
    *("urllib.parse", "email.message", "gevent.pywsgi", "lmtp_proxy.control.server", "lmtp_proxy.control.resources"),
)
"""One by one, with mail between them: 3 to 7 ms each, all at once 33. The thread is for a reload, if asked for."""
FOR_METRICS = (*FOR_CONTROL, "lmtp_proxy.web.server")
FOR_A_SCRAPE = ("prometheus_client.exposition", "prometheus_client.core")


def late_modules(config: Config) -> tuple[str, ...]:
    """All that a process with this configuration may come to import."""
    names = [*FOR_MAIL, *FOR_TLS, *FOR_A_THREAD, READS_CONFIG, *FOR_KEYS, *FOR_CONTROL]
    if config.receipts is not None:
        names += FOR_RECEIPTS
    if config.table is not None:
        names += FOR_TABLE
    if config.metrics is not None:
        names += [*FOR_METRICS, *FOR_A_SCRAPE]
    return tuple(dict.fromkeys(names))
