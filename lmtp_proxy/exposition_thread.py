# SPDX-License-Identifier: GPL-3.0-or-later
"""The exposition as an answer, made in a thread: what it imports and writes takes longer than mail should wait.

It knows neither whose figures they are nor who asks.
"""

from gevent.threadpool import ThreadPool

from lmtp_proxy.control_application import Text
from lmtp_proxy.exposition import render
from lmtp_proxy.figures import Figures

_threads: list[ThreadPool] = []  # one, of its own, from the first time on: prometheus_client is used in no other


def exposed(figures: Figures, accept: str) -> Text:
    """What a scraper gets. accept: see `render`."""
    if not _threads:
        _threads.append(ThreadPool(1))
    content_type, octets = _threads[0].apply(render, (figures, accept))
    return Text(content_type, octets)
