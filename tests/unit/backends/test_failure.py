# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of failures, and which reply or fault is which of them, read row by row."""

import ast
from pathlib import Path

import pytest

import lmtp_proxy
from lmtp_proxy.backends.counts import Counts
from lmtp_proxy.backends.failure import WITHOUT_ROUTE, BackendError, BackOff, Failure, Retry, judge, of_fault, of_lhlo
from lmtp_proxy.counts import Tallies
from lmtp_proxy.routing.routing import NoRoute
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.client import Command, Fault, RemoteProtocolError
from lmtp_proxy.wire.reply import Reply

JUDGED = (Command.MAIL, Command.RCPT, Command.DATA, Command.FINAL_DOT)


def reply(code: int) -> Reply:
    return Reply(code, (b"text",))


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", Failure)
def test_a_failure_is_4xx_unless_the_mail_can_never_be_taken(failure: Failure) -> None:
    meaning = failure.value
    if meaning.reply is None:
        assert failure is Failure.REFUSED
    else:
        assert meaning.reply.code // 100 == (5 if failure is Failure.NO_SMTPUTF8 else 4)
        assert failure.reply is meaning.reply and meaning.reply.enhanced


@pytest.mark.parametrize("failure", Failure)
def test_what_it_is_counted_as_is_a_counter(failure: Failure) -> None:
    meaning = failure.value
    if failure in WITHOUT_ROUTE.values():
        assert getattr(Tallies(), meaning.counter) == 0
    elif meaning.reply is None:
        assert meaning.counter == ""
    else:
        counts = Counts()
        counts.count([meaning.reply])
        assert getattr(counts, meaning.counter) == 1


def test_every_kind_has_words_of_its_own() -> None:
    """Two with the same row would be one: an Enum takes the second for an alias."""
    kinds = ["UNKNOWN", "PARKED", "LOOKUP", "BUSY", "TOO_MANY", "TOO_MANY_OF_ONE", "MAILBOX_BUSY", "CONNECT"]
    kinds += [
        "AUTH",
        "TLS",
        "MISUNDERSTOOD",
        "SILENT",
        "GONE",
        "CLOSING",
        "ODD",
        "REFUSED",
        "BROKEN_OFF",
        "NO_SMTPUTF8",
        "ROUTE",
        "INTERNAL",
    ]
    assert [failure.name for failure in Failure] == kinds == list(Failure.__members__)


def test_only_a_backend_that_has_left_or_had_enough_is_asked_again() -> None:
    """Silence may be that, too: of a host, or whatever stands between, that has forgotten the connection."""
    retried = {failure: failure.value.retry for failure in Failure if failure.value.retry is not Retry.NEVER}
    assert retried == {
        Failure.GONE: Retry.IF_UNHEARD,
        Failure.SILENT: Retry.IF_UNHEARD,
        Failure.CLOSING: Retry.IF_USED,
        Failure.REFUSED: Retry.IF_USED,
    }


def test_who_keeps_others_waiting_is_left_alone_for_a_while() -> None:
    alone = {failure: failure.value.back_off for failure in Failure if failure.value.back_off is not BackOff.NEVER}
    assert alone == {
        Failure.CONNECT: BackOff.IF_SLOW, Failure.SILENT: BackOff.IF_SLOW, Failure.GONE: BackOff.IF_SLOW,
    }  # fmt: skip


def test_what_only_an_administrator_can_mend_is_an_alarm() -> None:
    assert {failure for failure in Failure if failure.value.alarm} == {
        Failure.AUTH, Failure.TLS, Failure.MISUNDERSTOOD,
    }  # fmt: skip


def test_every_reason_for_no_backend_is_in_it() -> None:
    assert set(WITHOUT_ROUTE) == set(NoRoute)


def test_an_error_has_the_reply_of_its_kind_or_what_the_backend_said() -> None:
    error = BackendError(Failure.CONNECT, "connect:\nrefused")
    assert (error.reply, error.reason) == (say.CONNECT_FAILED, "connect:\\nrefused")
    assert BackendError(Failure.REFUSED, "in reply to MAIL", reply(552)).reply == reply(552)


def test_nobody_tells_failures_apart_by_their_sentence() -> None:
    """Whoever rewords a reply must not switch anything off by that."""
    root = Path(lmtp_proxy.__file__).parent
    found = [
        f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Compare) and any(map(is_sentence, (node.left, *node.comparators)))
    ]
    assert found == []


def is_sentence(node: ast.expr) -> bool:
    """`say.UNKNOWN_USER`, as the modules write it, or `Failure.UNKNOWN.reply`."""
    if not isinstance(node, ast.Attribute):
        return False
    if node.attr == "reply":
        return ast.unparse(node.value).startswith("Failure.")
    return ast.unparse(node.value) in ("say", "reply") and isinstance(getattr(say, node.attr, None), Reply)


# --- replies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "codes"),
    [
        (Command.MAIL, (250, 251)),
        (Command.RCPT, (250, 251, 252, 421 + 1, 450, 550, 555)),
        (Command.DATA, (354,)),
        (Command.FINAL_DOT, (250, 251, 450, 452, 550, 554)),
    ],
)
def test_what_goes_on_or_answers_a_recipient(command: Command, codes: tuple[int, ...]) -> None:
    for code in codes:
        assert judge(command, reply(code)) == reply(code)


@pytest.mark.parametrize("command", [Command.MAIL, Command.DATA])
@pytest.mark.parametrize("code", [450, 451, 452, 550, 552, 554])
def test_what_refuses_all_recipients_is_passed_on_verbatim(command: Command, code: int) -> None:
    with pytest.raises(BackendError) as failed:
        judge(command, reply(code))
    assert (failed.value.failure, failed.value.reply) == (Failure.REFUSED, reply(code))
    assert command.value in failed.value.reason


@pytest.mark.parametrize("command", [Command.MAIL, Command.RCPT, Command.DATA])
@pytest.mark.parametrize("code", [530, 534, 535, 538])
def test_what_wants_authentication_is_our_mistake_and_no_bounce(command: Command, code: int) -> None:
    assert meaning_of(command, reply(code)) == (Failure.AUTH, say.BACKEND_AUTH)
    assert judge(Command.FINAL_DOT, reply(code)) == reply(code)  # that is about the message


def test_430_to_mail_is_how_cyrus_asks_for_authentication() -> None:
    assert meaning_of(Command.MAIL, reply(430)) == (Failure.AUTH, say.BACKEND_AUTH)
    assert judge(Command.RCPT, reply(430)) == reply(430)


@pytest.mark.parametrize("command", [Command.MAIL, Command.RCPT, Command.DATA])
@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_what_is_about_our_commands_is_no_bounce(command: Command, code: int) -> None:
    assert meaning_of(command, reply(code)) == (Failure.MISUNDERSTOOD, say.BACKEND_MISUNDERSTANDS)
    assert judge(Command.FINAL_DOT, reply(code)) == reply(code)


@pytest.mark.parametrize("text", [b"5.5.2 need fully-qualified address", b"5.1.2 bad", b"5.1.10 none"])
def test_504_may_be_about_the_address(text: bytes) -> None:
    said = Reply(504, (text,))
    assert judge(Command.RCPT, said) == said
    assert meaning_of(Command.MAIL, said) == (Failure.MISUNDERSTOOD, say.BACKEND_MISUNDERSTANDS)


@pytest.mark.parametrize("text", [b"5.5.1 no", b"5.5.4 no", b"5.10.1 no", b"no"])
def test_another_504_to_rcpt_is_not(text: bytes) -> None:
    assert meaning_of(Command.RCPT, Reply(504, (text,)))[0] is Failure.MISUNDERSTOOD


def test_555_is_about_a_parameter_only_where_there_was_one() -> None:
    for command in (Command.MAIL, Command.RCPT):
        assert meaning_of(command, reply(555), parameters=True)[0] is Failure.MISUNDERSTOOD
    assert judge(Command.RCPT, reply(555)) == reply(555)
    assert meaning_of(Command.MAIL, reply(555)) == (Failure.REFUSED, reply(555))


def meaning_of(command: Command, said: Reply, *, parameters: bool = False) -> tuple[Failure, Reply]:
    with pytest.raises(BackendError) as failed:
        judge(command, said, parameters=parameters)
    return failed.value.failure, failed.value.reply


@pytest.mark.parametrize(
    ("code", "failure"),
    [(500, Failure.MISUNDERSTOOD), (503, Failure.MISUNDERSTOOD), (530, Failure.AUTH), (450, Failure.ODD)],
)
def test_what_a_refused_lhlo_means(code: int, failure: Failure) -> None:
    error = of_lhlo(code, "text")
    hint = "; is it an SMTP server?" if code == 500 else ""
    assert (error.failure, error.reason) == (failure, f"LHLO: {code} text{hint}")


@pytest.mark.parametrize(
    ("command", "codes"),
    [
        (Command.MAIL, (334, 354)),
        (Command.RCPT, (334, 354)),
        (Command.DATA, (220, 250, 334, 350, 355)),
        (Command.FINAL_DOT, (334, 354)),
    ],
)
def test_an_impossible_reply_is_no_verdict(command: Command, codes: tuple[int, ...]) -> None:
    for code in codes:
        with pytest.raises(BackendError) as failed:
            judge(command, reply(code))
        assert failed.value.failure is Failure.ODD
        assert failed.value.reply == say.BACKEND_ODD


def test_every_command_and_class_has_a_meaning() -> None:
    answers: set[int] = set()
    for command in JUDGED:
        for code in range(200, 600):
            try:
                judge(command, reply(code))
            except BackendError as error:
                answers.add(error.reply.code // 100)
    assert answers == {4, 5}, "a failure is told to recipients as anything but 4xx or 5xx"


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        (Fault.NO_REPLY, Failure.ODD),
        (Fault.TOO_LONG, Failure.ODD),
        (Fault.UNASKED, Failure.ODD),
        (Fault.CLOSING, Failure.CLOSING),
        (Fault.ENDED, Failure.GONE),
    ],
)
@pytest.mark.parametrize("said", [None, reply(250), reply(552)])
def test_what_a_fault_means(fault: Fault, failure: Failure, said: Reply | None) -> None:
    error = of_fault(RemoteProtocolError(fault, "why", said))
    assert (error.failure, error.reply, error.reason) == (failure, failure.reply, "why")


@pytest.mark.parametrize("code", [450, 552])
def test_a_refusal_amid_the_message_is_the_verdict_on_it(code: int) -> None:
    error = of_fault(RemoteProtocolError(Fault.EARLY, "why", reply(code)))
    assert (error.failure, error.reply) == (Failure.REFUSED, reply(code))


@pytest.mark.parametrize(("code", "failure"), [(503, Failure.MISUNDERSTOOD), (530, Failure.AUTH)])
def test_what_is_about_our_commands_is_none_amid_the_message(code: int, failure: Failure) -> None:
    error = of_fault(RemoteProtocolError(Fault.EARLY, "why", reply(code)))
    assert (error.failure, error.reply) == (failure, failure.reply)


@pytest.mark.parametrize("code", [250, 354])
def test_any_other_reply_amid_the_message_is_none(code: int) -> None:
    error = of_fault(RemoteProtocolError(Fault.EARLY, "why", reply(code)))
    assert (error.failure, error.reply) == (Failure.BROKEN_OFF, say.BACKEND_SILENT)


def test_every_fault_has_a_meaning() -> None:
    for fault in Fault:
        assert of_fault(RemoteProtocolError(fault, "why", reply(250))).failure in Failure
