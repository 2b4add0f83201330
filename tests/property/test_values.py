# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies and paths from any octets: what is accepted is exactly one reply or one command, and reads back as itself."""

import re

from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.text import printable
from lmtp_proxy.wire.envelope import Envelope, Recipient, parse_mail, parse_rcpt
from lmtp_proxy.wire.reply import MAX_LINE, Reply
from tests.property.driver import parse_replies

# --- replies ---------------------------------------------------------------------------------------------------------

LINES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"", b"2.1.5 Ok", b"5.1.1 no", b"4.2.1", b"-", b" ", b"x" * (MAX_LINE - 6), b"x" * (MAX_LINE - 5)]
    ),
    st.builds(lambda line, bad: line + bad + line, st.binary(max_size=5), st.sampled_from([b"\r\n", b"\n", b"\0"])),
)


def valid(code: int, lines: list[bytes]) -> bool:
    """RFC 5321 section 4.2: what may stand on the wire as one reply."""
    fits = all(len(line) <= MAX_LINE - 6 and not set(line) & {0, 10, 13} for line in lines)
    return 200 <= code <= 599 and bool(lines) and fits


@given(code=st.one_of(st.integers(200, 599), st.integers(-1000, 9999)), lines=st.lists(LINES, max_size=5))
def test_a_reply_is_refused_or_reads_back(code: int, lines: list[bytes]) -> None:
    try:
        reply = Reply(code, tuple(lines))
    except ValueError:
        assert not valid(code, lines)
        return
    assert valid(code, lines)
    wire = reply.to_bytes()
    assert parse_replies(wire) == [reply]
    assert parse_replies(wire + wire) == [reply, reply]
    assert max(map(len, wire.split(b"\r\n"))) <= MAX_LINE - 2
    assert reply.text in wire.replace(b"\r\n%d-" % code, b" ").replace(b"\r\n%d " % code, b" ")
    assert "\n" not in str(reply) and "\r" not in str(reply)


@given(code=st.integers(200, 599), lines=st.lists(LINES, min_size=1, max_size=4))
def test_an_enhanced_code_is_added_once_and_only_where_there_is_none(code: int, lines: list[bytes]) -> None:
    assume(valid(code, lines))
    reply = Reply(code, tuple(lines))
    full = reply.with_enhanced()
    assert full.code == code
    assert len(full.lines) == len(lines)
    assert full.with_enhanced() == full
    assert parse_replies(full.to_bytes()) == [full]
    if any(re.match(rb"[245]\.\d{1,3}\.\d{1,3}( |\Z)", line) for line in lines) or 300 <= code <= 399:
        assert full == reply
    else:
        assert full.enhanced == f"{code // 100}.0.0"
        assert all(line[6:] == old[: len(line) - 6] for line, old in zip(full.lines, lines, strict=True))


# --- paths -----------------------------------------------------------------------------------------------------------

PIECES = [
    b"<",
    b">",
    b"@",
    b'"',
    b"\\",
    b" ",
    b":",
    b",",
    b".",
    b"[",
    b"]",
    b"a",
    b"alice",
    b"x.test",
    b"[192.0.2.1]",
    b"\r",
    b"\n",
    b"\0",
    b"\t",
    b"\x7f",
    b"\x0b",
    b'"q u"',
    b'\\"',
    b"\\ ",
    b"@r:",
    b"@r,@s:",
    "é".encode(),
    b"\xe9",
    b"SIZE=1",
    b"+x",
    b"=",
    b"-",
]


def quoted(text: str) -> bytes:
    return b'"' + re.sub(r'["\\]', r"\\\g<0>", text).encode() + b'"'


LOCAL = st.one_of(
    st.text(st.sampled_from("abz019.!#$%&'*+-/=?^_`{|}~"), min_size=1, max_size=8).map(str.encode),
    st.text(st.sampled_from('abé.@<>:,;()[] \\"'), max_size=6).map(quoted),
    st.text(st.characters(max_codepoint=0x2FF), max_size=6).map(quoted),
)
DOMAINS = st.one_of(
    st.sampled_from([b"", b"@x.test", b"@[192.0.2.1]", b"@[IPv6:::1]", "@bücher.test".encode(), b"@", b"@a b"]),
    st.text(st.sampled_from("ab.-$+#/!:@[](){}\\\\\"'é <>\x7f"), max_size=6).map(lambda text: b"@" + text.encode()),
)
VALID = st.builds(
    lambda route, local, domain: b"<" + route + local + domain + b">",
    st.sampled_from([b"", b"", b"", b"@r:", b"@r,@[192.0.2.1]:"]),
    LOCAL,
    DOMAINS,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A path with one thing put in somewhere: most of what an attacker would try is one step from what is valid."""
    path: bytes = draw(VALID)
    place = draw(st.integers(0, len(path)))
    return path[:place] + draw(st.sampled_from(PIECES)) + path[place:]


PATHS = st.one_of(
    VALID,
    damaged(),
    damaged(),
    st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: b"<" + b"".join(pieces) + b">"),
    st.binary(max_size=20),
)
TAILS = st.sampled_from(
    [
        b"",
        b"",
        b"",
        b" ",
        b" SIZE=1",
        b" ORCPT=rfc822;a+2Bb",
        b" orcpt=x;",
        b" ORCPT=x;+0d",
        b"\r\nDATA",
        b"\nDATA",
        b" <b@c>",
        b">",
        b" NOTIFY=NEVER",
        b" BODY=8BITMIME",
    ]
)


def check_path(path: bytes) -> None:
    """One path, whatever it was cut out of: nothing in it can end the command, the path or a word."""
    assert path.startswith(b"<")
    assert path.endswith(b">")
    assert not set(path) & {0, 10, 13}
    assert all(octet >= 32 and octet != 127 for octet in path)
    bare = re.sub(rb'"(?:[^"\\]|\\.)*"|\[[^] ]*\]', b"", path, flags=re.DOTALL)  # without quoted strings and literals
    assert b" " not in bare
    assert b'"' not in bare
    assert bare.index(b">") == len(bare) - 1
    assert bare.rindex(b"<") == 0
    path.decode("utf-8")


@settings(max_examples=300)
@given(path=PATHS, tail=TAILS, smtputf8=st.booleans())
@example(path=b'<"a\\\r\nb"@x>', tail=b"", smtputf8=False)
def test_an_accepted_recipient_is_exactly_one_command(path: bytes, tail: bytes, smtputf8: bool) -> None:
    parsed = parse_rcpt(b"TO:" + path + tail, smtputf8=smtputf8)
    event(type(parsed).__name__)
    if not isinstance(parsed, Recipient):
        assert parsed.code in (501, 555)
        return
    check_path(parsed.path)
    assert parsed.path.isascii() or smtputf8
    assert (path + tail).strip(b" ")[: len(parsed.path)] == parsed.path
    assert parsed.orcpt is None or re.fullmatch(rb"[^;]+;(?:[!-*,-<>-~]|\+[0-9A-F]{2})*", parsed.orcpt)
    command = parsed.rcpt_command()
    assert command == b"RCPT TO:" + parsed.path
    assert parse_rcpt(command.removeprefix(b"RCPT "), smtputf8=smtputf8) == parsed._replace(orcpt=None)
    assert parsed.domain == "" or parsed.path.endswith(b"@" + parsed.domain.encode() + b">")
    assert KeyRules().forms(parsed.local_part, parsed.domain)


@settings(max_examples=300)
@given(path=st.one_of(PATHS, st.just(b"<>")), tail=TAILS, smtputf8=st.booleans())
def test_an_accepted_sender_is_exactly_one_command(path: bytes, tail: bytes, smtputf8: bool) -> None:
    words = b" SMTPUTF8" if smtputf8 else b""
    parsed = parse_mail(b"FROM:" + path + words + tail, smtputf8=True)
    event(type(parsed).__name__)
    if not isinstance(parsed, Envelope):
        assert parsed.code in (501, 555)
        return
    check_path(parsed.path)
    assert (path + words + tail).lstrip(b" ").startswith(parsed.path)
    assert parsed.smtputf8 is smtputf8
    assert printable(parsed.path).isprintable()
    command = parsed.mail_command({"size", "8bitmime", "smtputf8"})
    assert not set(command) & {0, 10, 13}
    assert parse_mail(command.removeprefix(b"MAIL "), smtputf8=True) == parsed
    assert parsed.mail_command(()) == b"MAIL FROM:" + parsed.path


# --- keys ------------------------------------------------------------------------------------------------------------

RULES = st.builds(
    KeyRules,
    case_sensitive=st.booleans(),
    recipient_delimiter=st.sampled_from(["", "+", "+-"]),
    ignore_domain=st.booleans(),
)
NAMES = st.text(
    st.one_of(st.sampled_from("aA+-.'ßİΣς"), st.characters(blacklist_characters="@")), min_size=1, max_size=8
)


@given(rules=RULES, local_part=NAMES, domain=st.one_of(st.just(""), NAMES))
def test_table_and_look_up_agree(rules: KeyRules, local_part: str, domain: str) -> None:
    written = f"{local_part}@{domain}" if domain else local_part
    forms = rules.forms(local_part, domain)
    assert forms[0] == rules.table_key(written)
    assert all(rules.table_key(form) in (form, "") or rules.ignore_domain for form in forms)
    assert all(forms)
    if domain and not rules.ignore_domain:
        assert forms[-1] == rules.table_key(f"@{domain}")
    if not rules.case_sensitive:
        # Each letter by itself: str.lower() of a whole word makes the last sigma another letter.
        assert rules.forms("".join(map(str.lower, local_part)), "".join(map(str.lower, domain))) == forms
