# SPDX-License-Identifier: GPL-3.0-or-later
"""The mail that shows where a store puts mail: `lmtp-proxyctl probe --deliver`. Nothing in it comes from outside."""

import email.utils
import secrets
from typing import Final

MARK: Final = "lmtp-proxy-test."
"""Every Message-ID of one begins so: etc/migrate/kept-apart knows them by it."""


def make_test_message(hostname: str) -> tuple[str, bytes]:
    """Its Message-ID, with < >, and the message with CRLF; a mail that nobody answers (RFC 3834), with no dot to stuff.

    hostname: ASCII, whose mail it is.
    """
    message_id = f"<{MARK}{secrets.token_hex(12)}@{hostname}>"
    lines = (
        f"From: lmtp-proxy <postmaster@{hostname}>",
        "To: undisclosed-recipients:;",
        f"Date: {email.utils.formatdate()}",
        f"Message-ID: {message_id}",
        "Subject: Test mail of lmtp-proxy",
        "Auto-Submitted: auto-generated",
        "",
        "This is the mail by which an administrator sees into whose mailbox the store",
        "puts it. It may be deleted.",
        "",
    )
    return message_id, "\r\n".join(lines).encode("ascii")
