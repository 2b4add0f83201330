# SPDX-License-Identifier: GPL-3.0-or-later
"""The Message-ID is found in the header only, however it is written."""

import pytest

from lmtp_proxy.delivery.uncertain import HEAD, message_id


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"Message-ID: <1@x>\r\n\r\nbody", b"<1@x>"),
        (b"message-id:<1@x>\r\n", b"<1@x>"),
        (b"MESSAGE-ID : <1@x>\nSubject: y\n\n", b"<1@x>"),
        (b"Subject: a\r\nMessage-Id:\r\n\t <1@x> (comment)\r\n\r\n", b"<1@x>"),
        (b"Subject: a\nMessage-ID:\n <1@x>\n\n", b"<1@x>"),
        (b"Subject: a\r\n\r\nMessage-ID: <1@x>\r\n", None),
        (b"Subject: a\n\nMessage-ID: <1@x>\n", None),
        (b"\r\nMessage-ID: <1@x>\r\n", None),
        (b"X-Message-ID: <1@x>\r\n\r\n", None),
        (b"Subject: Message-ID: <1@x>\r\n\r\n", None),
        (b"Message-ID:\r\nSubject: y\r\n\r\n", None),
        (b"Message-ID: \r\n\r\n<1@x>", None),
        (b"Message-ID: <\xff\x00@x>\r\n\r\n", b"<\xff\x00@x>"),
        (b"", None),
        (b"Message-ID: <1", b"<1"),
        (b"Message-ID: " + b"x" * 2000 + b"\r\n", b"x" * 998),
    ],
)
def test_message_id(head: bytes, found: bytes | None) -> None:
    assert message_id(head) == found


def test_it_is_quick_over_any_head() -> None:
    for piece in (b"message-id:\r\n ", b"\r\n ", b"message-id: \t", b"\nmessage-id", b" "):
        message_id((piece * HEAD)[:HEAD])  # the test's deadline is what is asserted
