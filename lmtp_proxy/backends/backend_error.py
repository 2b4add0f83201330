# SPDX-License-Identifier: GPL-3.0-or-later
"""That a conversation with a backend failed, and what it means for the recipients.

Apart from the conversation itself, which needs smtplib: with the package email and OpenSSL that is 6 MB, for which a
process waits until it has mail.
"""

from lmtp_proxy.text import printable
from lmtp_proxy.wire.reply import Reply


class BackendError(Exception):
    """A conversation failed.

    reply: what its recipients get. reason: for the log, escaped there. maybe_delivered: the final dot was sent, so the
    message may have been stored. alarm: somebody has to mend the configuration; waiting will not help.
    """

    def __init__(self, reply: Reply, reason: str, *, maybe_delivered: bool = False, alarm: bool = False) -> None:
        super().__init__(reason)
        self.reply = reply
        self.reason = printable(reason.encode("utf-8", "backslashreplace"))
        self.maybe_delivered = maybe_delivered
        self.alarm = alarm
