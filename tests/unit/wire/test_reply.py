# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies on the wire, and the sentences of our own against the promises that they carry."""

import dataclasses
import re

import pytest

from lmtp_proxy.wire import reply
from lmtp_proxy.wire.reply import Reply, reply_from_wire, worst_code

OWN = {name: value for name, value in vars(reply).items() if isinstance(value, Reply)}

# Code and enhanced code of each sentence, as promised to clients and administrators.
PROMISED = {
    "OK": (250, "2.0.0"),
    "SENDER_OK": (250, "2.1.0"),
    "HELP": (214, "2.0.0"),
    "CANNOT_VRFY": (252, None),
    "BYE": (221, "2.0.0"),
    "START_DATA": (354, None),
    "LINE_TOO_LONG": (500, "5.5.2"),
    "BAD_COMMAND": (500, None),
    "NOT_LMTP": (500, None),
    "BAD_SYNTAX": (501, "5.5.4"),
    "BAD_LHLO": (501, "5.5.4"),
    "BAD_XFORWARD": (501, "5.5.4"),
    "BAD_SENDER": (501, "5.5.4"),
    "BAD_RECIPIENT": (501, "5.5.4"),
    "NO_ARGUMENTS": (501, "5.5.4"),
    "UNKNOWN_PARAMETER": (555, "5.5.4"),
    "LHLO_FIRST": (503, "5.5.1"),
    "MAIL_FIRST": (503, "5.5.1"),
    "NESTED_MAIL": (503, "5.5.1"),
    "LATE_XFORWARD": (503, "5.5.1"),
    "NO_RECIPIENTS": (503, "5.5.1"),
    "TLS_FIRST": (451, "4.7.0"),
    "START_TLS": (220, "2.0.0"),
    "TLS_ALREADY": (503, "5.5.1"),
    "LATE_STARTTLS": (503, "5.5.1"),
    "BEHIND_STARTTLS": (421, "4.7.0"),
    "CERTIFICATE_NOT_ALLOWED": (421, "4.7.1"),
    "NO_TLS_NOW": (421, "4.3.0"),
    "TOO_MANY_RECIPIENTS": (452, "4.5.3"),
    "MAILBOX_BUSY": (451, "4.2.1"),
    "TOO_MANY_ERRORS": (421, None),
    "NOT_A_CLIENT": (421, "4.7.0"),
    "SIZE_TOO_BIG": (552, "5.3.4"),
    "AMBIGUOUS_DATA": (550, "5.6.0"),
    "TOO_SLOW": (421, "4.4.2"),
    "IDLE_TOO_LONG": (421, None),
    "SHUTTING_DOWN": (421, None),
    "NOT_ALLOWED": (421, "4.7.1"),
    "MAILBOX_PARKED": (450, "4.2.1"),
    "UNKNOWN_USER": (450, "4.1.1"),
    "LOOKUP_FAILED": (451, "4.3.0"),
    "ROUTE_CHANGED": (451, "4.2.1"),
    "CONNECT_FAILED": (451, "4.4.1"),
    "BACKEND_SILENT": (451, "4.4.2"),
    "BACKEND_ODD": (451, "4.3.0"),
    "BACKEND_AUTH": (451, "4.7.0"),
    "BACKEND_TLS": (451, "4.7.0"),
    "BACKEND_MISUNDERSTANDS": (451, "4.3.0"),
    "BACKEND_CLOSING": (451, "4.3.2"),
    "BACKEND_BUSY": (451, "4.3.2"),
    "NO_SMTPUTF8": (553, "5.6.7"),
    "INTERNAL_ERROR": (451, "4.3.0"),
    "INTERNAL_ERROR_CLOSING": (421, "4.3.0"),
}


# --- the wire --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, wire",
    [
        (Reply(250, (b"2.0.0 OK",)), b"250 2.0.0 OK\r\n"),
        (Reply(250, (b"",)), b"250 \r\n"),
        (Reply(200, (b"lowest",)), b"200 lowest\r\n"),
        (Reply(599, (b"highest",)), b"599 highest\r\n"),
        (
            Reply(550, (b"Mailbox unknown.", b"", b"5.1.1 User unknown")),
            b"550-Mailbox unknown.\r\n550-\r\n550 5.1.1 User unknown\r\n",
        ),
        (Reply(250, (b"2.1.5 gr\xc3\xbc\xdf \t\x7f",)), b"250 2.1.5 gr\xc3\xbc\xdf \t\x7f\r\n"),
    ],
)
def test_wire_form_is_the_lines_octet_for_octet(value: Reply, wire: bytes) -> None:
    assert value.to_bytes() == wire


@pytest.mark.parametrize("code", [-1, 0, 25, 199, 600, 2500])
def test_a_code_outside_rfc_5321_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        Reply(code, (b"text",))


def test_a_reply_without_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one line"):
        Reply(250, ())


@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0"])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("template", [b"%s", b"%stext", b"te%sxt", b"text%s"])
def test_a_line_that_could_end_the_reply_is_refused(octet: bytes, position: int, template: bytes) -> None:
    lines = [b"one", b"two", b"three"]
    lines[position] = template % octet
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        Reply(250, tuple(lines))


@pytest.mark.parametrize("first", [True, False])
def test_the_longest_line_is_4096_octets_on_the_wire(first: bool) -> None:
    room = 4096 - len(b"250 \r\n")
    other: tuple[bytes, ...] = (b"other",)

    def lines(line: bytes) -> tuple[bytes, ...]:
        return (line, *other) if first else (*other, line)

    assert max(map(len, Reply(250, lines(b"x" * room)).to_bytes().splitlines(keepends=True))) == 4096
    with pytest.raises(ValueError, match="4097"):
        Reply(250, lines(b"x" * (room + 1)))


def test_a_reply_is_a_frozen_value() -> None:
    one, same = Reply(250, (b"a", b"b")), Reply(250, (b"a", b"b"))
    assert one == same
    assert len({one, same, Reply(251, (b"a", b"b")), Reply(250, (b"a",))}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.code = 550  # type: ignore[misc]


# --- what a reply means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, positive, negative",
    [
        (200, True, False), (250, True, False), (299, True, False), (300, False, False), (354, False, False),
        (399, False, False), (400, False, True), (451, False, True), (500, False, True), (599, False, True),
    ],
)  # fmt: skip
def test_classes(code: int, positive: bool, negative: bool) -> None:
    value = Reply(code, (b"text",))
    assert (value.positive, value.negative) == (positive, negative)


@pytest.mark.parametrize(
    "code, lines, enhanced",
    [
        (250, (b"2.1.5 Ok",), "2.1.5"),
        (250, (b"2.1.5",), "2.1.5"),
        (550, (b"5.123.999 Ok",), "5.123.999"),
        (550, (b"Mailbox unknown", b"Sorry", b"5.1.1 User unknown"), "5.1.1"),  # Cyrus: only the last line has one
        (550, (b"5.1.1 User unknown", b"Sorry"), "5.1.1"),
        (451, (b"4.3.0 first", b"4.2.1 last"), "4.2.1"),
        (250, (b"Ok",), None),
        (250, (b"",), None),
        (250, (b" 2.1.5 Ok",), None),  # it starts the text, or it is none
        (250, (b"2.1.5Ok",), None),
        (250, (b"2.1 Ok",), None),
        (250, (b"2.1.5.1 Ok",), None),
        (250, (b"2.1.1000 Ok",), None),
        (250, (b"2.1000.1 Ok",), None),
        (250, (b"22.1.1 Ok",), None),
        (250, (b"5.1.1 of another class",), None),  # RFC 2034: the class is that of the code
        (250, (b"2.1.5 Ok", b"4.1.1 of another class"), "2.1.5"),
        (354, (b"3.0.0 there is no class 3",), None),
    ],
)
def test_enhanced_code(code: int, lines: tuple[bytes, ...], enhanced: str | None) -> None:
    assert Reply(code, lines).enhanced == enhanced


@pytest.mark.parametrize(
    "code, lines, wire",
    [
        (250, (b"Ok",), b"250 2.0.0 Ok\r\n"),
        (450, (b"Wait",), b"450 4.0.0 Wait\r\n"),
        (550, (b"No", b"really"), b"550-5.0.0 No\r\n550 5.0.0 really\r\n"),
        (354, (b"Go on",), b"354 Go on\r\n"),  # RFC 2034 section 4: not for 3xx
        (250, (b"2.1.5 Ok",), b"250 2.1.5 Ok\r\n"),
        (550, (b"Unknown", b"5.1.1 User unknown"), b"550-Unknown\r\n550 5.1.1 User unknown\r\n"),
        (550, (b"5.1.1 User unknown", b"Sorry"), b"550-5.1.1 User unknown\r\n550 Sorry\r\n"),
    ],
)
def test_generic_code_is_added_where_the_backend_gave_none(code: int, lines: tuple[bytes, ...], wire: bytes) -> None:
    assert Reply(code, lines).with_enhanced().to_bytes() == wire


def test_the_longest_line_still_fits_with_a_code_in_front() -> None:
    longest = Reply(550, (b"x" * (reply.MAX_LINE - 6),))
    wire = longest.with_enhanced().to_bytes()
    assert wire.startswith(b"550 5.0.0 xxx")
    assert len(wire) == reply.MAX_LINE


def test_text_and_str_are_one_line() -> None:
    value = Reply(550, (b"5.1.1 No such", b"user \xff \xc3\xbc"))
    assert value.text == b"5.1.1 No such user \xff \xc3\xbc"
    assert str(value) == "550 5.1.1 No such user \\xff ü"


# --- our own sentences -----------------------------------------------------------------------------------------------


def test_every_sentence_is_promised_and_every_promise_is_a_sentence() -> None:
    assert set(OWN) == set(PROMISED)


@pytest.mark.parametrize("name", sorted(OWN))
def test_own_sentence(name: str) -> None:
    value = OWN[name]
    code, enhanced = PROMISED[name]
    assert value.code == code
    if enhanced:
        assert value.enhanced == enhanced
    if value.code == 354:
        assert value.enhanced is None
    else:
        # RFC 2034 section 4: every 2xx, 4xx and 5xx has a code, in each line, of its own class.
        assert all(re.match(rb"%d\.\d\.\d " % (value.code // 100), line) for line in value.lines)
    wire = value.to_bytes()
    assert wire.isascii() and wire.count(b"\r\n") == len(value.lines)
    assert max(map(len, wire.splitlines(keepends=True))) <= 512  # RFC 5321 section 4.5.3.1.5
    assert value.with_enhanced() == value


def test_only_the_promised_refusals_are_permanent() -> None:
    """Syntax, sequence, parameters, size, ambiguous data; and an address that its store cannot take."""
    permanent = {name for name, value in OWN.items() if value.code >= 500}
    syntax = {
        "LINE_TOO_LONG", "BAD_COMMAND", "NOT_LMTP", "BAD_SYNTAX", "BAD_LHLO", "BAD_SENDER", "BAD_RECIPIENT",
        "NO_ARGUMENTS", "UNKNOWN_PARAMETER", "BAD_XFORWARD",
    }  # fmt: skip
    sequence = {"LHLO_FIRST", "MAIL_FIRST", "NESTED_MAIL", "NO_RECIPIENTS", "LATE_XFORWARD"}
    sequence |= {"TLS_ALREADY", "LATE_STARTTLS"}
    assert permanent == syntax | sequence | {"SIZE_TOO_BIG", "AMBIGUOUS_DATA", "NO_SMTPUTF8"}


def test_starttls_is_one_line_more() -> None:
    before, after = reply.lhlo("mx", 5, True, ("IDENT",)), reply.lhlo_with_starttls("mx", 5, True, ("IDENT",))
    assert after.lines == (*before.lines, b"STARTTLS")


def test_greeting_starts_with_the_host_name() -> None:
    wire = reply.greeting("mx.example.test").to_bytes()
    assert re.fullmatch(rb"220 mx\.example\.test LMTP [ -~]*\r\n", wire)


@pytest.mark.parametrize(
    "max_message_size, smtputf8, extensions",
    [
        (0, False, {b"PIPELINING", b"ENHANCEDSTATUSCODES", b"8BITMIME", b"SIZE"}),
        (1, False, {b"PIPELINING", b"ENHANCEDSTATUSCODES", b"8BITMIME", b"SIZE 1"}),
        (0, True, {b"PIPELINING", b"ENHANCEDSTATUSCODES", b"8BITMIME", b"SIZE", b"SMTPUTF8"}),
        (5 << 30, True, {b"PIPELINING", b"ENHANCEDSTATUSCODES", b"8BITMIME", b"SIZE 5368709120", b"SMTPUTF8"}),
    ],
)
def test_lhlo_offer(max_message_size: int, smtputf8: bool, extensions: set[bytes]) -> None:
    value = reply.lhlo("mx.example.test", max_message_size=max_message_size, smtputf8=smtputf8)
    assert value.code == 250
    assert value.lines[0].split()[0] == b"mx.example.test"  # RFC 5321 section 4.1.1.1: the first word
    assert len(value.lines) == len(extensions) + 1
    assert set(value.lines[1:]) == extensions


def test_lhlo_offers_xforward_to_those_who_may() -> None:
    value = reply.lhlo("mx", max_message_size=0, smtputf8=False, xforward=("IDENT", "NAME"))
    assert value.lines[-1] == b"XFORWARD IDENT NAME"


@pytest.mark.parametrize("hostname", ["mx\r\n250 evil", "mx\n", "mx\0"])
def test_a_host_name_cannot_break_a_reply(hostname: str) -> None:
    with pytest.raises(ValueError):
        reply.greeting(hostname)
    with pytest.raises(ValueError):
        reply.lhlo(hostname, max_message_size=0, smtputf8=False)


def test_a_reply_from_the_wire_goes_back_as_it_came() -> None:
    wire = b"250 2.1.5 <u@x>  two  spaces\r\n"
    reply = reply_from_wire(250, (b"2.1.5 <u@x>  two  spaces",), wire)
    assert reply == Reply(250, (b"2.1.5 <u@x>  two  spaces",)) and hash(reply) == hash(Reply(250, reply.lines))
    assert reply.to_bytes() == wire and reply.in_one_line == wire[:-2]
    lines = reply_from_wire(550, (b"5.1.1 no", b"5.1.1 such user"))
    assert lines.to_bytes() == b"550-5.1.1 no\r\n550 5.1.1 such user\r\n"
    assert lines.in_one_line == b"550 5.1.1 no 5.1.1 such user"


@pytest.mark.parametrize(
    ("codes", "worst"), [((), 0), ((250,), 250), ((250, 550, 451), 550), ((250, 354), 354), ((451, 250), 451)]
)
def test_the_worst_code_is_the_highest(codes: tuple[int, ...], worst: int) -> None:
    assert worst_code([Reply(code, (b"x",)) for code in codes]) == worst
