# SPDX-License-Identifier: GPL-3.0-or-later
"""The line of a recipient; how it looks in full is in tests/faults/test_log.py."""

import logging

import pytest

from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.config.values import Backend, UnixAddress
from lmtp_proxy.delivery.commit import Message
from lmtp_proxy.delivery.log import log_aborted, log_recipients
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.routing.routing import Route
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.envelope import Envelope, Recipient
from lmtp_proxy.wire.reply import Reply

OK = Reply(250, (b"2.1.5 ok",))
POOL = BackendPool(Backend("old", UnixAddress("/old")), "proxy")
ALICE, BOB = (
    Destination(Recipient(f"<{user}@x>".encode(), user, "x"), Route((f"{user}@x",)), 1, POOL)
    for user in ("alice", "bob")
)
NOBODY = Destination(Recipient(b"<no\\body@x>", "nobody", "x"), Route(("nobody@x",)), 1, None)


def message(queue_id: str = "") -> Message:
    return Message("8f3a", Envelope(b"<s@x>", queue_id=queue_id), size=123)


@pytest.mark.parametrize("queue_id", ["", "4Zx"])
def test_lines_with_the_same_reply_are_as_those_with_different_ones(
    caplog: pytest.LogCaptureFixture, queue_id: str
) -> None:
    with caplog.at_level(logging.INFO, "lmtp_proxy"):
        log_recipients(message(queue_id), [ALICE, BOB], [OK, OK], (), 0.018)
        log_recipients(message(queue_id), [ALICE, BOB], [OK, OK], ["", ""], 0.018)
        log_recipients(message(queue_id), [ALICE, NOBODY], [OK, say.UNKNOWN_USER], ["", ""], 0.018)
    lines = caplog.messages
    assert lines[:2] == lines[2:4]
    origin = f"orig_queue_id={queue_id}, " if queue_id else ""
    assert lines[4:] == [
        f"8f3a: from=<s@x>, to=<alice@x>, {origin}backend=old[/old], size=123, delay=0.02, dsn=2.1.5, "
        "status=sent (250 2.1.5 ok)",
        f"8f3a: from=<s@x>, to=<no\\\\body@x>, {origin}backend=-, size=123, delay=0.02, dsn=4.1.1, "
        "status=deferred (450 4.1.1 No backend is known for this user)",
    ]
    assert lines[0] == lines[4]


def test_why_stands_behind_the_reply(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lmtp_proxy"):
        log_recipients(message(), [ALICE, BOB], [say.BACKEND_SILENT] * 2, ["", "no answer in time"], 1)
    assert [line.partition("status=")[2] for line in caplog.messages] == [
        "deferred (451 4.4.2 Backend did not answer in time or closed the connection)",
        "deferred (451 4.4.2 Backend did not answer in time or closed the connection; no answer in time)",
    ]


def test_of_those_given_up_only_some_may_have_been_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lmtp_proxy"):
        log_aborted(message("4Zx"), [ALICE, BOB], 1, "gone", 0)
    assert caplog.messages == [
        "8f3a: from=<s@x>, to=<alice@x>, orig_queue_id=4Zx, backend=old[/old], size=123, delay=0.00, dsn=4.4.2, "
        "status=aborted (gone)",
        "8f3a: from=<s@x>, to=<bob@x>, orig_queue_id=4Zx, backend=-, size=123, delay=0.00, dsn=4.4.2, "
        "status=aborted (gone)",
    ]
