"""Backends' replies on their way to the client: verbatim, in order, at once, and never a byte that is not a reply."""

from __future__ import annotations

import threading

import pytest

from tests.faults.conftest import Pair
from tests.support.accounting import check_earned
from tests.support.script import Await, Close, Flood, Hang, Reset, Script, raw, say


def test_the_same_address_twice_gets_two_replies_by_position(pair: Pair) -> None:
    pair.a.script = Script(final_at={0: say("250 2.0.0 one"), 1: say("552 5.2.2 two"), 2: say("250 2.0.0 three")})
    with pair.proxy.client() as client:
        outcome = client.deliver("s@x", ["u@a", "u@a", "v@b", "u@a"])
        assert [outcome.verdict(position).text for position in range(4)] == [
            "250 2.0.0 one",
            "552 5.2.2 two",
            "250 2.0.0 stored",
            "250 2.0.0 three",
        ]
        check_earned(outcome, [pair.a, pair.a, pair.b, pair.a])
        client.quit()


def test_all_lines_of_a_reply_pass(pair: Pair) -> None:
    unknown = (
        "550-Mailbox unknown.  Either there is no mailbox associated with this",
        "550-name or you do not have authorization to see it.",
        "550 5.1.1 User unknown",
    )
    pair.a.script = Script(
        rcpt_by={"u@a": say(*unknown)},
        final_at={0: say("250-2.1.5 Success", "250 2.1.5 SESSIONID=<x-1>")},
    )
    with pair.proxy.client() as client:
        outcome = client.deliver("s@x", ["u@a", "v@a"])
        refused, stored = outcome.rcpts[0], outcome.verdict(1)
        assert refused.code == 550 and len(refused.lines) == 3
        assert [line.decode()[-len(text[4:]) :] for line, text in zip(refused.lines, unknown, strict=True)] == [
            text[4:] for text in unknown
        ]
        assert refused.lines[2] == b"5.1.1 User unknown"
        assert stored.lines == (b"2.1.5 Success", b"2.1.5 SESSIONID=<x-1>")
        client.quit()


def test_octets_of_a_reply_pass(pair: Pair) -> None:
    pair.a.script = Script(final=say("250 2.0.0 gespeichert für ü@a\tok".encode()))
    with pair.proxy.client() as client:
        outcome = client.deliver("s@x", ["u@a"])
        assert outcome.verdict(0).lines == ("2.0.0 gespeichert für ü@a\tok".encode(),)
        client.quit()


def test_replies_ended_by_a_bare_line_feed_do_not_break_the_client(pair: Pair) -> None:
    pair.a.script = Script(mail=raw(b"250 2.1.0 ok\n"), rcpt=raw(b"250 2.1.5 ok\n"), final=raw(b"250 2.0.0 ok\n"))
    with pair.proxy.client() as client:
        outcome = client.deliver("s@x", ["u@a", "v@b"])
        assert outcome.verdict(0).text in ("250 2.0.0 ok",) or outcome.verdict(0).text.startswith("451 4.3.0")
        assert outcome.verdict(1).positive
        client.quit()


@pytest.mark.parametrize(
    "answer",
    [
        b"550 5.1.1 " + b"x" * 4100 + b"\r\n",
        b"550 5.1.1 a\0b\r\n",
        b"550 5.1.1 a\rb\r\n",
        b"550 5.1.1 a\r250 2.1.5 b\r\n",
        b"\r\n",
        b"55\r\n",
        b"5500 5.1.1 no\r\n",
        b"550_5.1.1 no\r\n",
        b" 550 5.1.1 no\r\n",
        b"650 6.1.1 no\r\n",
        b"\xd9\xa2\xd9\xa5\xd9\xa0 2.1.5 arabic digits\r\n",
    ],
    ids=[
        "long",
        "nul",
        "cr",
        "cr-reply",
        "empty",
        "short",
        "four-digits",
        "separator",
        "blank",
        "650",
        "unicode-digits",
    ],
)
def test_what_is_no_reply_never_reaches_the_client(pair: Pair, answer: bytes) -> None:
    pair.a.script = Script(rcpt=raw(answer))
    with pair.proxy.client() as client:
        outcome = client.deliver("s@x", ["u@a", "v@b"])
        assert outcome.rcpts[0].text.startswith("451 4.3.0"), outcome.rcpts[0]
        assert outcome.verdict(1).positive
        client.quit()
    assert pair.a.wait_closed(1)


def test_a_reply_line_of_the_permitted_length_passes(pair: Pair) -> None:
    text = "552 5.2.2 " + "y" * 480
    pair.a.script = Script(final=say(text))
    with pair.proxy.client() as client:
        assert client.deliver("s@x", ["u@a"]).verdict(0).text == text
        client.quit()


@pytest.mark.parametrize("data", [b"250-2.0.0 and so on\r\n", b"2" * 4096], ids=["lines", "one-line"])
@pytest.mark.parametrize("phase", ["greeting", "lhlo", "rcpt", "final"])
def test_an_endless_reply_costs_bounded_memory(pair: Pair, phase: str, data: bytes) -> None:
    steps = (Flood(data, 64 << 20), Hang())
    pair.a.script = Script().at(phase, steps)
    before = pair.proxy.status("VmHWM")
    with pair.proxy.client() as client:
        outcome = client.deliver("s@x", ["u@a", "v@b"])
        assert outcome.verdict(0).code == 451 and outcome.verdict(1).positive
        client.quit()
    assert pair.proxy.status("VmHWM") - before < 4096
    assert pair.a.wait_closed(1)


def test_surplus_final_replies_are_not_the_next_verdict(pair: Pair) -> None:
    pair.a.script = Script(after_finals=say("250 2.0.0 surplus", "250 2.0.0 surplus"))
    with pair.proxy.client() as client:
        for number in range(3):
            outcome = client.deliver(f"s{number}@x", ["u@a", "v@a"])
            check_earned(outcome, [pair.a, pair.a])
        pair.a.script = Script(final=say("452 4.2.2 full"))
        assert client.deliver("last@x", ["u@a"]).verdict(0).text == "452 4.2.2 full"
        client.quit()


@pytest.mark.parametrize("owner", ["a", "b"])
def test_a_backend_that_answers_and_leaves_at_once_is_believed(pair: Pair, owner: str) -> None:
    """Its end may be seen before its last reply is read: the reply stands all the same."""
    backend = pair.a if owner == "a" else pair.b
    # On TCP a reset would destroy what is not read yet; an orderly end does not.
    backend.script = Script(after_finals=(Reset(),) if owner == "a" else (Close(),))
    for number in range(150):
        with pair.proxy.client() as client:
            outcome = client.deliver(f"{number}@x", [f"u@{owner}", f"v@{owner}"])
            check_earned(outcome, [backend, backend])
            assert outcome.verdict(0).positive and outcome.verdict(1).positive, (number, outcome)
            client.quit()


def test_known_final_replies_are_handed_on_at_once(pair: Pair) -> None:
    go = threading.Event()
    pair.b.script = Script(final=(Await(go), *say("250 2.0.0 late")))
    pair.a.script = Script(final_at={2: (Await(go), *say("250 2.0.0 late too"))})
    with pair.proxy.client() as client:
        outcome = client.envelope("s@x", ["u@a", "v@a", "w@b", "x@a"])
        client.send(b"x\r\n.\r\n")
        assert client.reply().text == "250 2.0.0 stored"
        assert client.reply().text == "250 2.0.0 stored"
        assert client.silent(0.2)
        go.set()
        assert client.reply().text == "250 2.0.0 late"
        assert client.reply().text == "250 2.0.0 late too"
        assert outcome.mail is not None
        client.quit()


def test_a_421_at_data_undoes_the_acceptance(pair: Pair) -> None:
    pair.a.script = Script(data=(*say("421 4.3.2 Service shutting down"), Close()))
    with pair.proxy.client() as client:
        outcome = client.deliver("s@x", ["u@a", "v@a"], pipelined=False)
        assert outcome.data is not None and outcome.data.code == 354
        assert [outcome.verdict(position).text[:9] for position in (0, 1)] == ["451 4.3.2"] * 2
        # Who has pipelined DATA has not heard of the acceptance yet.
        outcome = client.deliver("s@x", ["u@a", "v@a"])
        assert [reply.text[:9] for reply in outcome.rcpts] == ["451 4.3.2"] * 2
        client.quit()


def test_waits_for_several_backends_overlap(pair: Pair) -> None:
    """Neither backend answers before the other one was asked, too: who waits for one after the other waits for ever."""
    answers = {"greeting": "220 ready", "mail": "250 2.1.0 ok", "rcpt": "250 2.1.5 ok", "data": "354 go",
               "final": "250 2.0.0 ok"}  # fmt: skip
    for phase, answer in answers.items():
        both = Meeting(2)
        pair.a.script = pair.b.script = Script().at(phase, (Await(both), *say(answer)))
        with pair.proxy.client() as client:
            outcome = client.deliver("s@x", ["u@a", "u@b"])
            assert outcome.verdict(0).positive and outcome.verdict(1).positive, phase
            client.quit()
        assert pair.a.wait_closed() and pair.b.wait_closed()


class Meeting(threading.Event):
    """Is set when so many threads wait for it."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads
        self._there: set[int] = set()

    def is_set(self) -> bool:
        self._there.add(threading.get_ident())
        return len(self._there) >= self._threads


def test_the_greeting_does_not_wait_for_backends(pair: Pair) -> None:
    pair.a.script = pair.b.script = Script(greeting=(Hang(),))
    with pair.proxy.client() as client:
        assert client.command("MAIL FROM:<s@x>").code == 250
        assert not pair.a.connections and not pair.b.connections
        client.quit()


def test_one_slow_backend_slows_no_other_client(pair: Pair) -> None:
    pair.a.script = Script(rcpt=(Hang(),))
    with pair.proxy.client() as stuck, pair.proxy.client() as other:
        stuck.send(b"MAIL FROM:<stuck@x>\r\nRCPT TO:<u@a>\r\n")
        assert stuck.reply().code == 250
        assert pair.a.wait_for(lambda: bool(pair.a.connections))
        for number in range(20):
            assert other.deliver(f"s{number}@x", ["v@b"]).verdict(0).positive
        other.quit()


def test_many_refused_recipients_are_no_client_errors(pair: Pair) -> None:
    """Refusals by backends or the table say nothing about the client: its connection stays."""
    pair.a.script = Script(rcpt=say("550 5.1.1 no such user"))
    with pair.proxy.client() as client:
        outcome = client.envelope("s@x", [f"u{number}@a" for number in range(40)] + ["v@b"])
        client.finals_after(outcome, b"x\r\n.\r\n")
        assert [reply.code for reply in outcome.rcpts] == [550] * 40 + [250]
        unknown = client.deliver("t@x", [f"u{number}@nowhere" for number in range(40)])
        assert {reply.text[:9] for reply in unknown.rcpts} == {"450 4.1.1"}
        assert client.deliver("again@x", ["v@b"]).verdict(0).positive
        client.quit()


def test_a_thousand_recipients(pair: Pair) -> None:
    pair.a.script = Script(final_by={f"u{number}@a": say("452 4.2.2 full") for number in range(0, 1000, 7)})
    recipients = [f"u{number}@{'ab'[number % 2]}" for number in range(1000)]
    with pair.proxy.client() as client:
        outcome = client.deliver("s@x", recipients)
        check_earned(outcome, [(pair.a, pair.b)[number % 2] for number in range(1000)])
        assert sum(outcome.verdict(position).positive for position in range(1000)) > 900
        over = client.deliver("t@x", [*recipients, "one-more@a"])
        assert over.rcpts[1000].text.startswith("452 4.5.3")
        client.quit()
