# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that get the same answer whatever was said before, and whether that counts as a mistake of the client's.

Values only: what a mistake leads to is the protocol's business.
"""

from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.reply import Reply

ANSWERS: dict[bytes, Reply] = {
    b"VRFY": say.CANNOT_VRFY,  # RFC 5321 section 4.1.1.6 and 7.3
    b"HELP": say.HELP,  # RFC 5321 section 4.1.1.8
    b"NOOP": say.OK,  # RFC 5321 section 4.1.1.9
}
REFUSALS: dict[bytes, Reply] = {
    b"HELO": say.NOT_LMTP,  # RFC 2033 section 4.1: must not be accepted
    b"EHLO": say.NOT_LMTP,  # RFC 2033 section 4.1: must not be accepted
}
