# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths and parameters: what is taken as it is, what is refused and with which reply."""

import dataclasses

import pytest

from lmtp_proxy.wire.envelope import (
    Envelope,
    Recipient,
    parse_envelope,
    parse_mail,
    parse_rcpt,
    path_of,
    plain_recipient,
)
from lmtp_proxy.wire.reply import Reply

# path as it comes -> local part and domain for the look-up
PATHS: dict[bytes, tuple[str, str]] = {
    b"<alice@example.test>": ("alice", "example.test"),
    b"<Alice@Example.TEST>": ("Alice", "Example.TEST"),  # folding is a matter of the key
    b"<alice+detail@example.test>": ("alice+detail", "example.test"),
    b"<u001>": ("u001", ""),
    b"<Postmaster>": ("Postmaster", ""),  # RFC 5321 section 4.1.1.3
    b"<!#$%&'*+-/=?^_`{|}~.aZ09@example.test>": ("!#$%&'*+-/=?^_`{|}~.aZ09", "example.test"),  # all of atext
    b"<a@b>": ("a", "b"),
    b"<a@1.2-3.test>": ("a", "1.2-3.test"),
    b"<a@[192.0.2.1]>": ("a", "[192.0.2.1]"),
    b"<a@[IPv6:2001:db8::1]>": ("a", "[IPv6:2001:db8::1]"),
    b'<"quoted user"@full.test>': ("quoted user", "full.test"),
    b'<"quoted user">': ("quoted user", ""),
    b'<"a@b"@example.test>': ("a@b", "example.test"),
    b'<"a>b"@example.test>': ("a>b", "example.test"),
    b'<"a> SIZE=1"@example.test>': ("a> SIZE=1", "example.test"),
    b'<"a\\"b\\\\c\\ d\\e"@example.test>': ('a"b\\c de', "example.test"),
    b'<"\\>"@example.test>': (">", "example.test"),
    b'<""@example.test>': ("", "example.test"),  # RFC 5321 allows it
    b"<@relay.test:alice@example.test>": ("alice", "example.test"),
    b"<@a.test,@[192.0.2.1],@c.test:alice@example.test>": ("alice", "example.test"),
    b'<@a.test:"al ice"@example.test>': ("al ice", "example.test"),
}

UTF8_PATHS: dict[bytes, tuple[str, str]] = {
    "<jürgen@example.test>".encode(): ("jürgen", "example.test"),
    "<用户@例え.test>".encode(): ("用户", "例え.test"),
    '<"jür gen"@example.test>'.encode(): ("jür gen", "example.test"),
    "<a@bücher.test>".encode(): ("a", "bücher.test"),
    "<@bücher.test:a@example.test>".encode(): ("a", "example.test"),
}

BAD_PATHS: list[bytes] = [
    b"",
    b"<",
    b">",
    b"alice@example.test",
    b"<alice@example.test",
    b"alice@example.test>",
    b"<<alice@example.test>>",
    b"<alice@example.test>>",
    b"<alice@example.test>x",
    b"<alice@example.test>,<bob@example.test>",
    b"<alice>@example.test>",
    b"<@example.test>",
    b"<alice@>",
    b"<a@b@example.test>",
    b"<al ice@example.test>",
    b"< alice@example.test>",
    b"<alice@example.test >",
    b"<alice@exam ple.test>",
    b"<alice@-exa/mple.test>",
    b"<alice,bob@example.test>",
    b"<alice:bob@example.test>",
    b"<alice;bob@example.test>",
    b"<alice(comment)@example.test>",
    b"<al\\ice@example.test>",
    b"<[alice]@example.test>",
    b'<al"ice@example.test>',
    b'<"al"ice@example.test>',
    b'<"alice@example.test>',
    b'<"alice\\"@example.test>',
    b'<"al"ice"@example.test>',
    b"<a@[192.0.2.1>",
    b"<a@192.0.2.1]>",
    b"<a@[]>",
    b"<a@[1 2]>",
    b"<a@[1[2]>",
    b"<a@[1\\2]>",
    b"<@relay.test alice@example.test>",
    b"<@relay.test:>",
    b"<relay.test:alice@example.test>",
    b"<@a.test,b.test:alice@example.test>",
    b"<@a.test,:alice@example.test>",
    b"<a\x00b@example.test>",
    b"<a\tb@example.test>",
    b"<a\rb@example.test>",
    b"<a\nb@example.test>",
    b"<a\x7fb@example.test>",
    b"<a@exam\x00ple.test>",
    b"<a@exam\nple.test>",
    b"<a@[1\r2]>",
    b'<"a\rb"@example.test>',
    b'<"a\nb"@example.test>',
    b'<"a\x00b"@example.test>',
    b'<"a\x7fb"@example.test>',
    b'<"a\\\rb"@example.test>',
    b'<"a\\\nb"@example.test>',
    b'<"a\\\x00b"@example.test>',
]

# What Postfix sends for senders that cron jobs and scripts make up (`sendmail -f`), and what stores take.
REVERSE_PATHS: list[bytes] = [
    b"<root@web$1>",
    b"<a@b+c.example>",
    b"<user@host#3>",
    b"<root@>",
    b"<u@x'>",
    b"<u@a/b>",
    b"<x@exa!mple.example>",
    b"<u@a:b>",
    b"<u@{x}>",
    b"<u@~x>",
    b"<u@x%y>",
    b"<u@x=y>",
    b'<"a b"@x$1>',
    b'<""@>',
    b"<u@x&y|z`w^v*?>",
    b"<a@[]>",
    b"<a@[a$b]>",
    b"<a@]>",
    b"<u@x@y>",
    b"<u@x,y;z(c)>",
    b"<u@a\\b>",
    b"<u@a\\\\>",
    b'<u@x"y">',
    b'<u@"\\y">',
    b"<@relay.test:u@x$>",
    "<u@bücher$>".encode(),
]

BROKEN_REVERSE_PATHS: list[bytes] = [
    b"<u@a b>",  # Postfix makes this of u@"a b"
    b'<u@"a b">',
    b"<a@x>y>",
    b'<a@"x>y">',
    b"<a@x<y>",
    b'<a@">',
    b'<a@x"y>',
    b'<a@["]>',
    b'<a@"x\\">',
    b'<a@x\\"y>',
    b"<a@x\\>",
    b"<a@x\\\\\\>",
    b"<a@x\\ y>",
    b"<a@x\\\r\n>",
    b"<u@x\x7f>",
    b"<u@x\x01>",
    b"<u@x\0>",
    b"<u@x\r\nDATA>",
    b"<u@\xff>",
    b"<u@x",
    b"<@x>",
    b"<@>",
    b"<@a$b:u@x>",
]

LAX_FOR_A_SENDER = {
    b"<alice@>", b"<a@b@example.test>", b"<alice@-exa/mple.test>", b"<a@[192.0.2.1>", b"<a@192.0.2.1]>", b"<a@[]>",
    b"<a@[1[2]>", b"<a@[1\\2]>",
}  # fmt: skip

NOT_UTF8: list[bytes] = [
    b"<j\xfcrgen@example.test>",  # Latin-1
    b"<a@b\xc3.test>",
    b"<\xc0\xaf@example.test>",  # an overlong slash
    b"<\xed\xa0\x80@example.test>",  # a surrogate
    b'<"\xff"@example.test>',
]


def code_of(parsed: Envelope | Recipient | Reply) -> tuple[int, str | None]:
    assert isinstance(parsed, Reply), parsed
    return parsed.code, parsed.enhanced


# --- RCPT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("smtputf8", [False, True])
def test_recipient_is_kept_verbatim_and_read_for_the_look_up(path: bytes, smtputf8: bool) -> None:
    parsed = parse_rcpt(b"TO:" + path, smtputf8=smtputf8)
    assert parsed == Recipient(path, *PATHS[path])
    assert parsed.rcpt_command() == b"RCPT TO:" + path


@pytest.mark.parametrize("path", UTF8_PATHS)
def test_utf8_recipient_only_with_smtputf8(path: bytes) -> None:
    assert parse_rcpt(b"TO:" + path, smtputf8=True) == Recipient(path, *UTF8_PATHS[path])
    assert isinstance(parse_rcpt(b"TO:" + path, smtputf8=False), Reply)


@pytest.mark.parametrize("path", [*BAD_PATHS, b"<>"])
@pytest.mark.parametrize("smtputf8", [False, True])
def test_bad_recipient(path: bytes, smtputf8: bool) -> None:
    assert code_of(parse_rcpt(b"TO:" + path, smtputf8=smtputf8)) == (501, "5.5.4")


@pytest.mark.parametrize("path", NOT_UTF8)
@pytest.mark.parametrize("smtputf8", [False, True])
def test_what_is_not_utf8_is_refused(path: bytes, smtputf8: bool) -> None:
    assert code_of(parse_rcpt(b"TO:" + path, smtputf8=smtputf8)) == (501, "5.5.4")
    words = b" SMTPUTF8" if smtputf8 else b""
    assert code_of(parse_mail(b"FROM:" + path + words, smtputf8=smtputf8)) == (501, "5.5.4")


@pytest.mark.parametrize(
    "arguments", [b"", b"TO", b"TO ", b"<a@b>", b"FROM:<a@b>", b"TO<a@b>", b"TO :<a@b>", b"X TO:<a@b>", b"TOO:<a@b>"]
)
def test_rcpt_needs_to(arguments: bytes) -> None:
    assert code_of(parse_rcpt(arguments, smtputf8=False)) == (501, "5.5.4")


@pytest.mark.parametrize("arguments", [b"TO:<a@b>", b"to:<a@b>", b"To:<a@b>"])
def test_to_in_any_case(arguments: bytes) -> None:
    assert parse_rcpt(arguments, smtputf8=False) == Recipient(b"<a@b>", "a", "b")


@pytest.mark.parametrize(
    "words, code",
    [
        (b" NOTIFY=NEVER", 555),  # DSN is not offered
        (b" NOTIFY=NEVER ORCPT=rfc822;", 555),
        (b" ORCPT=rfc822;a RRVS=x", 555),
        (b" NOTIFY=NEVER ORCPT=rfc822;a", 555),
        (b" SIZE=1", 555),  # belongs to MAIL
        (b" SMTPUTF8", 555),
        (b" -X", 501),
        (b" X=", 501),
        (b" =X", 501),
        (b" X=a=b", 501),
        (b" NOTIFY=\xff", 501),
        (b" <b@c>", 501),
        (b" NOTIFY=NEVER X=", 501),
        (b" ORCPT", 501),
        (b" ORCPT=", 501),
        (b" ORCPT=rfc822", 501),  # no type
        (b" ORCPT=;a@b", 501),
        (b" ORCPT=rfc 822;a", 501),
        (b" ORCPT=(c);a", 501),
        (b" ORCPT=rfc822;a=b", 501),
        (b" ORCPT=rfc822;a+", 501),
        (b" ORCPT=rfc822;a+2", 501),
        (b" ORCPT=rfc822;a+2b", 501),  # RFC 3461: in upper case
        (b" ORCPT=rfc822;\xc3\xbc", 501),
        (b" ORCPT=rfc822;a\x7f", 501),
        (b" ORCPT=rfc822;a ORCPT=rfc822;a", 501),
        (b" ORCPT=rfc822;a orcpt=rfc822;b", 501),
    ],
)
def test_other_parameters_of_rcpt(words: bytes, code: int) -> None:
    assert code_of(parse_rcpt(b"TO:<a@b>" + words, smtputf8=False)) == (code, "5.5.4")


@pytest.mark.parametrize(
    "orcpt",
    [
        b"rfc822;u001+2Bfolder@example.test",
        b'rfc822;"Al+20ice"@Example.org',
        b"RFC822;a+3Db@x",
        b"rfc822;",
        b"utf-8;a\\x{FC}@x",  # RFC 6533
        b"x_y;;",
        b"unknown;+00+0D+0A",
    ],
)
def test_orcpt_is_kept_and_stays_here(orcpt: bytes) -> None:
    """Dovecot as an LMTP proxy sends it without being asked, whenever it looked a user up by another name."""
    for keyword in (b"ORCPT", b"orcpt"):
        parsed = parse_rcpt(b"TO:<a@b>  " + keyword + b"=" + orcpt + b" ", smtputf8=False)
        assert parsed == Recipient(b"<a@b>", "a", "b", orcpt)
        assert parsed.rcpt_command() == b"RCPT TO:<a@b>"


def test_a_parameter_needs_a_space_in_front() -> None:
    assert code_of(parse_rcpt(b"TO:<a@b>NOTIFY=NEVER", smtputf8=False)) == (501, "5.5.4")
    assert code_of(parse_mail(b"FROM:<a@b>SIZE=1", smtputf8=False)) == (501, "5.5.4")
    assert code_of(parse_mail(b"FROM:<>SIZE=1", smtputf8=False)) == (501, "5.5.4")


# --- MAIL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PATHS, b"<>"])
@pytest.mark.parametrize("smtputf8", [False, True])
def test_sender_is_kept_verbatim(path: bytes, smtputf8: bool) -> None:
    assert parse_mail(b"FROM:" + path, smtputf8=smtputf8) == Envelope(path)


@pytest.mark.parametrize("path", UTF8_PATHS)
def test_utf8_sender_with_and_without_the_parameter(path: bytes) -> None:
    """Postfix with `smtputf8_enable = no` sends it without. Dovecot takes it, Cyrus says 501 itself."""
    assert parse_mail(b"FROM:" + path + b" SMTPUTF8", smtputf8=True) == Envelope(path, smtputf8=True)
    for smtputf8 in (False, True):
        assert parse_mail(b"FROM:" + path, smtputf8=smtputf8) == Envelope(path)


@pytest.mark.parametrize("path", REVERSE_PATHS)
@pytest.mark.parametrize("words", [b"", b" SIZE=1", b" SIZE=1 BODY=8BITMIME"])
def test_a_domain_that_is_none_is_no_reason_to_lose_mail(path: bytes, words: bytes) -> None:
    """The store judges it. A refusal would be a bounce to an address that nobody can send to."""
    parsed = parse_mail(b"FROM:" + path + words, smtputf8=False)
    assert isinstance(parsed, Envelope) and parsed.path == path
    assert parsed.mail_command({"size", "8bitmime"}) == b"MAIL FROM:" + path + words
    # A recipient is looked up, so it stays strict.
    assert code_of(parse_rcpt(b"TO:" + path, smtputf8=True)) == (501, "5.5.4")


@pytest.mark.parametrize(
    "path", [*BROKEN_REVERSE_PATHS, *(path for path in BAD_PATHS if path != b"" and path not in LAX_FOR_A_SENDER)]
)
@pytest.mark.parametrize("words", [b"", b" SIZE=1"])
def test_bad_sender(path: bytes, words: bytes) -> None:
    assert code_of(parse_mail(b"FROM:" + path + words, smtputf8=True)) == (501, "5.5.4")


@pytest.mark.parametrize("arguments", [b"", b"FROM", b"FROM:", b"<a@b>", b"TO:<a@b>", b"FROM<a@b>", b"FROM :<a@b>"])
def test_mail_needs_from(arguments: bytes) -> None:
    assert code_of(parse_mail(arguments, smtputf8=False)) == (501, "5.5.4")


@pytest.mark.parametrize(
    "words, envelope",
    [
        (b"", Envelope(b"<a@b>")),
        (b" SIZE=0", Envelope(b"<a@b>", size=0)),
        (b" SIZE=12345678901234567890", Envelope(b"<a@b>", size=12345678901234567890)),  # 20 digits, RFC 1870
        (b" BODY=7BIT", Envelope(b"<a@b>", body=b"7BIT")),
        (b" BODY=8BITMIME", Envelope(b"<a@b>", body=b"8BITMIME")),
        (b" body=8bitmime size=10", Envelope(b"<a@b>", size=10, body=b"8BITMIME")),
        (b" SIZE=10 BODY=7bit SMTPUTF8", Envelope(b"<a@b>", size=10, body=b"7BIT", smtputf8=True)),
        (b" SmtpUtf8", Envelope(b"<a@b>", smtputf8=True)),
    ],
)
def test_mail_parameters(words: bytes, envelope: Envelope) -> None:
    assert parse_mail(b"from:<a@b>" + words, smtputf8=True) == envelope


@pytest.mark.parametrize(
    "words, code",
    [
        (b" SIZE", 501),
        (b" SIZE=", 501),
        (b" SIZE=-1", 501),
        (b" SIZE=+1", 501),
        (b" SIZE=1k", 501),
        (b" SIZE=0x10", 501),
        (b" SIZE=1_0", 501),
        (b" SIZE=123456789012345678901", 501),
        (b" SIZE=1 SIZE=1", 501),
        (b" SIZE=1 size=2", 501),
        (b" BODY", 501),
        (b" BODY=", 501),
        (b" BODY=9BIT", 501),
        (b" BODY=7BIT BODY=8BITMIME", 501),
        (b" SMTPUTF8=1", 501),
        (b" SMTPUTF8 SMTPUTF8", 501),
        (b" =", 501),
        (b" -SIZE=1", 501),
        (b" SI_ZE=1", 501),
        (b" S\xc4\xb0ZE=1", 501),
        (b" X=a=b", 501),
        (b" X=\x7f", 501),
        (b" RET=HDRS", 555),
        (b" ENVID=QQ314159", 555),
        (b" AUTH=<>", 555),
        (b" X", 555),
        (b" SIZE=1 X=y", 555),
    ],
)
def test_bad_mail_parameters(words: bytes, code: int) -> None:
    assert code_of(parse_mail(b"FROM:<a@b>" + words, smtputf8=True)) == (code, "5.5.4")


@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0", b"\t", b"\v", b"\f", b"\x1c", b"\x7f"])
@pytest.mark.parametrize("template", [b" %s", b" SIZE=1%s", b" SIZE=1%sBODY=7BIT", b" SIZE=1 %s", b" SI%sZE=1"])
def test_no_control_octet_is_taken_for_a_space(octet: bytes, template: bytes) -> None:
    """RFC 5321 section 4.1.1: parameters are parted by SP, and a value holds no control characters."""
    assert code_of(parse_mail(b"FROM:<a@b>" + template % octet, smtputf8=True)) == (501, "5.5.4")
    assert isinstance(parse_rcpt(b"TO:<a@b>" + template % octet, smtputf8=True), Reply)


def test_smtputf8_is_unknown_where_it_was_not_offered() -> None:
    assert code_of(parse_mail(b"FROM:<a@b> SMTPUTF8", smtputf8=False)) == (555, "5.5.4")


# --- towards a backend -----------------------------------------------------------------------------------------------

FULL = Envelope(b"<a@b>", size=10, body=b"8BITMIME", smtputf8=True)


@pytest.mark.parametrize(
    "envelope, offered, command",
    [
        (FULL, {"size", "8bitmime", "smtputf8"}, b"MAIL FROM:<a@b> SIZE=10 BODY=8BITMIME SMTPUTF8"),
        (FULL, {"size"}, b"MAIL FROM:<a@b> SIZE=10"),
        (FULL, {"8bitmime", "pipelining"}, b"MAIL FROM:<a@b> BODY=8BITMIME"),
        (FULL, {"smtputf8"}, b"MAIL FROM:<a@b> SMTPUTF8"),
        (FULL, set(), b"MAIL FROM:<a@b>"),
        (Envelope(b"<>", size=0), {"size", "8bitmime", "smtputf8"}, b"MAIL FROM:<> SIZE=0"),
        (Envelope(b"<>", body=b"7BIT"), {"size", "8bitmime"}, b"MAIL FROM:<> BODY=7BIT"),
        (Envelope(b"<>"), {"size", "8bitmime", "smtputf8"}, b"MAIL FROM:<>"),
    ],
)
def test_a_backend_gets_only_the_parameters_that_it_offered(
    envelope: Envelope, offered: set[str], command: bytes
) -> None:
    assert envelope.mail_command(offered) == command


def test_both_are_frozen_values() -> None:
    assert len({Envelope(b"<>"), Envelope(b"<>"), Envelope(b"<>", size=0)}) == 2
    recipient = Recipient(b"<a@b>", "a", "b")
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        recipient.domain = "c"  # type: ignore[misc]
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        FULL.size = 1  # type: ignore[misc]


# --- an envelope in one write ----------------------------------------------------------------------------------------

ENVELOPE = b"MAIL FROM:<s+1@x.org> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<a@x>\r\nRCPT TO:<B.c@y.z>\r\n"


@pytest.mark.parametrize("before", [b"", b"RSET\r\n"])
def test_an_envelope_as_a_whole_is_what_its_commands_are(before: bytes) -> None:
    parsed = parse_envelope(before + ENVELOPE + b"DATA\r\nbody", len(before))
    assert parsed is not None
    envelope, paths, end = parsed
    assert envelope == parse_mail(b"FROM:<s+1@x.org> SIZE=100 BODY=8BITMIME", smtputf8=True)
    assert [*map(plain_recipient, paths)] == [
        parse_rcpt(b"TO:<a@x>", smtputf8=True), parse_rcpt(b"TO:<B.c@y.z>", smtputf8=True)
    ]  # fmt: skip
    assert end == len(before + ENVELOPE)


def test_an_envelope_of_a_bounce() -> None:
    parsed = parse_envelope(b"MAIL FROM:<>\r\nRCPT TO:<a@x>\r\nDATA\r\n", 0, "4fX")
    assert parsed is not None and parsed[0] == Envelope(b"<>", queue_id="4fX")


@pytest.mark.parametrize(
    "octets",
    [
        ENVELOPE,
        ENVELOPE + b"DATA",
        ENVELOPE + b"DATA x\r\n",
        ENVELOPE + b"data\r\n",
        ENVELOPE + b"NOOP\r\nDATA\r\n",
        b"MAIL FROM:<s@x>\r\nDATA\r\n",
        b"MAIL FROM:<s@x>\nRCPT TO:<a@x>\r\nDATA\r\n",
        b"MAIL FROM:<s@x> SMTPUTF8\r\nRCPT TO:<a@x>\r\nDATA\r\n",
        b"MAIL FROM:<s@x>\r\nRCPT TO:<a>\r\nDATA\r\n",
        b'MAIL FROM:<s@x>\r\nRCPT TO:<"a b"@x>\r\nDATA\r\n',
        b"MAIL FROM:<s@x>\r\nRCPT TO:<\xc3\xbc@x>\r\nDATA\r\n",
        b"MAIL FROM:<s@x>\r\nRCPT TO:<a@x> NOTIFY=NEVER\r\nDATA\r\n",
    ],
)
def test_anything_else_is_taken_one_by_one(octets: bytes) -> None:
    assert parse_envelope(octets, 0) is None


@pytest.mark.parametrize(("octets", "local"), [(256, 127), (257, 127), (255, 128)])
@pytest.mark.parametrize("recipients", [1, 60])
def test_only_paths_of_a_usual_length_are_taken_along(octets: int, local: int, recipients: int) -> None:
    """A line that is too long is none of these; what is between is taken one by one, to the same result."""
    path = b"<" + b"u" * local + b"@" + b"x" * (octets - local - 3) + b">"
    group = b"MAIL FROM:<s@x>\r\n" + b"RCPT TO:<a@example.org>\r\n" * recipients
    parsed = parse_envelope(group + b"RCPT TO:" + path + b"\r\nDATA\r\n", 0)
    assert (parsed is not None) == (octets == 256)
    one = parse_rcpt(b"TO:" + path, smtputf8=False)
    assert isinstance(one, Recipient) and one.path == path
    assert parsed is None or plain_recipient(parsed[1][-1]) == one


@pytest.mark.parametrize(
    ("arguments", "sender", "path"),
    [
        (b"FROM:<s@x> SIZE=x Y=\xff", True, b"<s@x>"),
        (b"from: <>", True, b"<>"),
        (b"FROM:<root@web$1>", True, b"<root@web$1>"),
        (b"FROM:<s x@y>", True, None),
        (b"TO:<s@x>", True, None),
        (b"TO:<a@b> NOTIFY=NEVER", False, b"<a@b>"),
        (b"TO:<a@b>NOTIFY", False, None),
        (b"TO:<>", False, None),
        (b"", False, None),
    ],
)
def test_the_path_of_what_was_refused(arguments: bytes, sender: bool, path: bytes | None) -> None:
    assert path_of(arguments, sender=sender) == path
