# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of docs/reference/replies.md and of the man page say of each failure what that in backends/failure.py
does, and no more."""

import re

import pytest

from lmtp_proxy.backends import failure as table
from lmtp_proxy.backends.failure import Failure
from lmtp_proxy.wire.client import Command
from tests.docs.pages import text_of
from tests.docs.test_man_pages import PROXY
from tests.docs.test_man_pages import section as man_section

ROWS: dict[Failure, list[str]] = {
    Failure.UNKNOWN: [
        "user not in the table, and no `fallback_backend`",
        "recipient without a domain while `users` has domains, and no `default_domain`",
    ],
    Failure.PARKED: ["user on `reject`, or on `hold` for too long or with too many waiting"],
    Failure.LOOKUP: ["the table cannot be asked"],
    Failure.BUSY: ["`max_connections` of this store in use for longer than `connect`"],
    Failure.TOO_MANY: ["more recipients than the store takes in one message, and no place for a second transaction"],
    Failure.TOO_MANY_OF_ONE: ["more than `max_per_user` recipients of one mailbox in one message"],
    Failure.MAILBOX_BUSY: [
        "`max_per_user` recipients of this mailbox under way, and no reply for them in 2 s, or as many waiting",
    ],
    Failure.CONNECT: ["store: connection refused, no socket, no route, timeout"],
    Failure.AUTH: [
        "store: wants authentication, or refuses ours (an alarm in the log: it concerns all of its users)",
    ],
    Failure.TLS: [
        "store: no TLS where there should be, or a certificate that is expired, of somebody else or of an unknown CA "
        "(an alarm in the log)",
    ],
    Failure.MISUNDERSTOOD: [
        "store: does not take a command or parameter of ours: 500, 502, 503, 504, 555 (an alarm in the log)",
    ],
    Failure.SILENT: [
        "store: connects and says nothing, or hangs up",
        "store: no reply after the message (logged as `may be delivered`)",
    ],
    Failure.GONE: ["store: connects and says nothing, or hangs up"],
    Failure.CLOSING: ["store: is shutting down (421)"],
    Failure.ODD: ["store: refuses in its greeting or LHLO, or talks nonsense"],
    Failure.REFUSED: ["store: refuses MAIL, RCPT, DATA or the message, 4xx or 5xx"],
    Failure.BROKEN_OFF: ["store: breaks off during the message"],
    Failure.NO_SMTPUTF8: ["an internationalized address, and a store that cannot take it"],
    Failure.ROUTE: ["the user was moved while the message came in"],
    Failure.INTERNAL: ["our own mistake (a traceback in the log)"],
}
OTHER_ROWS = {
    "message over `max_message_size`",
    "more than `max_recipients`",
    "a lone dot between line ends other than CRLF, or at the end of a line of more than 8189 octets",
    "a host that `allow` does not name (in place of the greeting; then closed)",
    "MAIL without TLS, where `tls.required` of the listener is set",
    "a client without a certificate, or with one that is not in `allow_subjects` (then closed)",
    "more than STARTTLS, in plain text (then closed)",
    "TLS cannot be had, for want of files or memory (then closed)",
}
"""What is said to a message or a client, whatever becomes of a recipient."""

BEFORE = ("Greeting and LHLO", "TLS", "Authentication", "MAIL", "RCPT", "DATA")
TALK = ("Greeting and LHLO", "MAIL", "RCPT", "DATA")
MAN_ENTRIES: dict[Failure, list[tuple[str, str]]] = {
    Failure.UNKNOWN: [("Before a store is asked", "user not in the table")],
    Failure.PARKED: [("Before a store is asked", "user on reject")],
    Failure.LOOKUP: [("Before a store is asked", "the table cannot be asked")],
    Failure.BUSY: [("Before a store is asked", "max_connections of the store in use")],
    Failure.TOO_MANY: [("Before a store is asked", "more recipients than the store takes")],
    Failure.TOO_MANY_OF_ONE: [("Before a store is asked", "more than max_per_user recipients")],
    Failure.MAILBOX_BUSY: [("Before a store is asked", "max_per_user recipients of the mailbox")],
    Failure.NO_SMTPUTF8: [("Before a store is asked", "an internationalized address")],
    Failure.INTERNAL: [("Before a store is asked", "an error of the proxy itself")],
    Failure.CONNECT: [("Connecting", "refused, no socket")],
    Failure.AUTH: [("Authentication", "refused, not offered")]
    + [(title, "it wants authentication") for title in (*TALK, "The message")],
    Failure.TLS: [("TLS", "STARTTLS is not offered")],
    Failure.MISUNDERSTOOD: [(title, "it does not take our commands") for title in (*TALK, "The message")],
    Failure.SILENT: [
        (title, "silence") for title in BEFORE
    ] + [("The message", "nothing taken for"), ("After the final dot", "silence until")],
    Failure.GONE: [
        (title, "the connection was closed")
        for title in (*BEFORE, "The message", "After the final dot")
    ],
    Failure.CLOSING: [
        (title, "421")
        for title in (*BEFORE, "The message", "After the final dot")
    ],
    Failure.ODD: [("Greeting and LHLO", "4xx, 5xx, or nonsense")]
    + [(title, "a reply that is impossible here") for title in ("MAIL", "RCPT", "DATA", "After the final dot")],
    Failure.REFUSED: [("MAIL", "4xx and 5xx"), ("DATA", "4xx and 5xx"), ("The message", "4xx and 5xx before its end")],
    Failure.BROKEN_OFF: [("The message", "any other reply before its end")],
    Failure.ROUTE: [("The message as a whole", "the user was moved")],
}  # fmt: skip


def shown(failure: Failure) -> str:
    reply = failure.value.reply
    return "verbatim" if reply is None else f"{reply.code} {reply.enhanced}"


def rows_of_the_page() -> dict[str, str]:
    rows = re.findall(r"(?m)^\| (.*) \| (.*) \|$", text_of("docs/reference/replies.md"))
    return {what: reply for what, reply in rows if reply != "reply"}


def man_entries(title: str) -> list[tuple[str, str]]:
    """What is told, and of what, without markup; sentence by sentence, where one reply is told of several things."""
    text = re.sub(r"(?m)^\.(Cm|Dq|Xr|Li) (.*)$", lambda match: match[2], man_section(PROXY, title, "Ss"))
    entries = re.findall(r"(?ms)^\.It (.*?)$(.*?)(?=^\.It |^\.El)", text)
    return [(told, " ".join(one.split())) for told, what in entries for one in re.split(r"\.\n", what)]


def test_no_kind_is_left_out() -> None:
    assert set(ROWS) == set(MAN_ENTRIES) == set(Failure)


@pytest.mark.parametrize("failure", Failure)
def test_the_page(failure: Failure) -> None:
    rows = rows_of_the_page()
    for what in ROWS[failure]:
        assert rows[what].startswith(shown(failure)), what
    assert any("alarm" in what for what in ROWS[failure]) is failure.value.alarm


def test_the_page_has_no_other_row() -> None:
    assert set(rows_of_the_page()) == OTHER_ROWS.union(*ROWS.values())


@pytest.mark.parametrize("failure", Failure)
def test_man_page(failure: Failure) -> None:
    alarms = []
    for title, words in MAN_ENTRIES[failure]:
        told = [(told, what) for told, what in man_entries(title) if words in what and told == shown(failure)]
        assert len(told) == 1, (title, words)
        alarms.append("alarm" in told[0][1])
    assert set(alarms) == {failure.value.alarm}


def test_the_codes_that_mean_something_of_their_own_are_in_the_man_page() -> None:
    for command, kinds in table._OF_CODE.items():
        for kind in {kind for kind in kinds.values() if kind is not None}:
            [what] = [
                what for told, what in man_entries(command.value) if told == shown(kind) and re.match(r"\d", what)
            ]
            codes = {int(code) for code in re.findall(r"\b\d{3}\b", what)}
            assert codes == {code for code, meant in kinds.items() if meant is kind}, (command, kind)
    assert table._OF_CODE[Command.MAIL]
