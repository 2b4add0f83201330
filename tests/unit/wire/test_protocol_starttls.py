# SPDX-License-Identifier: GPL-3.0-or-later
"""STARTTLS (RFC 3207) as the protocol has it: where it is offered, and that nothing from before it is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_proxy.wire.events import ConnectionClosed, EnvelopeCommand, MailCommand, RefusedCommand, StartTlsCommand, Wait
from lmtp_proxy.wire.protocol import LocalProtocolError, Protocol

ENVELOPE = b"MAIL FROM:<s@x>\r\nRCPT TO:<u@x>\r\nDATA\r\n"


def protocol(*, trusted: bool = False) -> Protocol:
    return Protocol("proxy", max_message_size=0, max_recipients=10, smtputf8=False, trusted=trusted)


def offering(*, required: bool = False, implicit: bool = False, trusted: bool = False) -> Protocol:
    made = protocol(trusted=trusted)
    made.expect_tls(required=required, implicit=implicit)
    return made


def said(made: Protocol, octets: bytes) -> bytes:
    """What is answered. No event may come but refusals."""
    made.receive_data(octets)
    while not isinstance(event := made.next_event(), Wait | ConnectionClosed):
        assert isinstance(event, RefusedCommand), event
    return made.data_to_send()


def started(made: Protocol) -> Protocol:
    made.receive_data(b"STARTTLS\r\n")
    assert made.next_event() == StartTlsCommand()
    assert made.start_tls(more=False)
    assert made.data_to_send().startswith(b"220 2.0.0 ")
    made.tls_started()
    return made


def test_it_is_offered_where_it_can_be_and_not_again() -> None:
    assert b"STARTTLS" not in said(protocol(), b"LHLO c\r\n")
    made = offering()
    assert b"250 STARTTLS\r\n" in said(made, b"LHLO c\r\n")
    assert b"STARTTLS" not in said(started(made), b"LHLO c\r\n")


def test_out_of_turn() -> None:
    assert said(protocol(), b"STARTTLS\r\n").startswith(b"500 ")
    assert said(offering(), b"STARTTLS now\r\n").startswith(b"501 5.5.4")
    assert said(started(offering()), b"STARTTLS\r\n").startswith(b"503 5.5.1")
    made = offering()
    said(made, b"LHLO c\r\n")
    made.receive_data(b"MAIL FROM:<s@x>\r\n")
    assert isinstance(made.next_event(), MailCommand)
    assert b"503 5.5.1 STARTTLS" in said(made, b"STARTTLS\r\n")
    with pytest.raises(LocalProtocolError):
        offering().start_tls(more=False)


@pytest.mark.parametrize("octets", [ENVELOPE, b"MAIL FROM:<s@x> BODY=8BITMIME\r\n", b"XFORWARD IDENT=ABC\r\n"])
def test_required(octets: bytes) -> None:
    made = offering(required=True, trusted=True)
    said(made, b"LHLO c\r\n")
    assert said(made, octets).startswith(b"451 4.7.0 ")
    assert said(started(made), octets).startswith(b"503 5.5.1 Send LHLO first")
    said(made, b"LHLO c\r\n")
    made.receive_data(ENVELOPE)
    assert isinstance(made.next_event(), EnvelopeCommand)


@pytest.mark.parametrize("more", [b"", b"\r\n", b"NOOP\r\n", ENVELOPE, b"\x16\x03\x01"])
def test_nothing_behind_it_is_run(more: bytes) -> None:
    """In the same segment, or (empty here) in what was not received yet."""
    made = offering()
    said(made, b"LHLO c\r\n")
    made.receive_data(b"STARTTLS\r\n" + more)
    assert made.next_event() == StartTlsCommand()
    assert not made.start_tls(more=not more)
    assert made.data_to_send().startswith(b"421 4.7.0 ") and made.next_event() == ConnectionClosed()
    made.receive_data(ENVELOPE)
    assert made.next_event() == ConnectionClosed() and made.data_to_send() == b""


def test_what_was_said_before_is_forgotten() -> None:
    made = offering(trusted=True)
    said(made, b"LHLO c\r\nXFORWARD IDENT=PLAIN\r\n" + b"WHAT\r\n" * 19)
    started(made)
    assert said(made, b"WHAT\r\n").startswith(b"500 "), "the errors count anew"
    assert b"421" not in said(made, b"LHLO c\r\n")
    made.receive_data(b"MAIL FROM:<s@x>\r\n")
    event = made.next_event()
    assert isinstance(event, MailCommand) and event.envelope.queue_id == ""


@pytest.mark.parametrize("octets", [ENVELOPE, b"MAIL FROM:<s@x>\r\n", b"XFORWARD IDENT=ABC\r\n"])
def test_lhlo_has_to_be_said_again(octets: bytes) -> None:
    made = offering(trusted=True)
    said(made, b"LHLO c\r\n")
    assert said(started(made), octets).startswith(b"503 5.5.1 Send LHLO first")


def test_implicit_begins_with_it() -> None:
    made = offering(implicit=True)
    made.greet()
    assert made.next_event() == StartTlsCommand()
    made.tls_started()
    assert made.next_event() is Wait.NEED_DATA
    assert made.data_to_send().startswith(b"220 proxy ")
    assert b"STARTTLS" not in said(made, b"LHLO c\r\n")


@given(st.lists(st.integers(0, 80), max_size=6), st.sampled_from([b"", b"x", b"NOOP\r\n", ENVELOPE]))
def test_cut_anywhere_nothing_of_the_plain_text_is_heard_in_tls(cuts: list[int], more: bytes) -> None:
    octets = b"LHLO c\r\nXFORWARD IDENT=PLAIN\r\nSTARTTLS\r\n" + more
    ends = sorted({*(cut for cut in cuts if cut < len(octets)), len(octets)})
    made, begin = offering(trusted=True), 0
    for end in ends:
        if not octets[begin:end]:
            continue
        made.receive_data(octets[begin:end])
        begin = end
        if (event := made.next_event()) == StartTlsCommand():
            break
        assert event is Wait.NEED_DATA
    going_on = made.start_tls(more=begin < len(octets))
    assert going_on is not bool(more)
    if going_on:
        made.tls_started()
        assert made.data_to_send().endswith(b"220 2.0.0 Ready to start TLS\r\n")
        assert len(said(made, b"NOOP\r\n").splitlines()) == 1
