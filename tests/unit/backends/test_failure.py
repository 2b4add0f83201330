# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of what a reply means, read row by row."""

import pytest

from lmtp_proxy.backends.failure import BackendError, Phase, judge
from lmtp_proxy.wire import reply as say
from lmtp_proxy.wire.reply import Reply


def reply(code: int) -> Reply:
    return Reply(code, (b"text",))


@pytest.mark.parametrize(
    ("phase", "codes"),
    [
        (Phase.MAIL, (250, 251)),
        (Phase.RCPT, (250, 251, 252, 421 + 1, 450, 550, 555)),
        (Phase.DATA, (354,)),
        (Phase.FINAL_DOT, (250, 251, 450, 452, 550, 554)),
    ],
)
def test_what_goes_on_or_answers_a_recipient(phase: Phase, codes: tuple[int, ...]) -> None:
    for code in codes:
        assert judge(phase, reply(code)) == reply(code)


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.DATA])
@pytest.mark.parametrize("code", [450, 451, 452, 550, 552, 554])
def test_what_refuses_all_recipients_is_passed_on_verbatim(phase: Phase, code: int) -> None:
    with pytest.raises(BackendError) as failed:
        judge(phase, reply(code))
    assert failed.value.reply == reply(code)
    assert phase.value in failed.value.reason
    assert not failed.value.alarm


@pytest.mark.parametrize("code", [430, 530, 534, 535, 538])
def test_mail_that_wants_authentication_is_our_mistake_and_no_bounce(code: int) -> None:
    with pytest.raises(BackendError) as failed:
        judge(Phase.MAIL, reply(code))
    assert failed.value.reply is say.BACKEND_AUTH
    assert failed.value.alarm
    if code != 430:  # elsewhere these are replies like all others
        assert judge(Phase.RCPT, reply(code)) == reply(code)


@pytest.mark.parametrize(
    ("phase", "codes"),
    [
        (Phase.MAIL, (334, 354)),
        (Phase.RCPT, (334, 354)),
        (Phase.DATA, (220, 250, 334, 350, 355)),
        (Phase.FINAL_DOT, (334, 354)),
    ],
)
def test_an_impossible_reply_is_no_verdict(phase: Phase, codes: tuple[int, ...]) -> None:
    for code in codes:
        with pytest.raises(BackendError) as failed:
            judge(phase, reply(code))
        assert failed.value.reply is say.BACKEND_ODD
        assert not failed.value.maybe_delivered


def test_every_phase_and_class_has_a_meaning() -> None:
    answers: set[int] = set()
    for phase in Phase:
        for code in range(200, 600):
            try:
                judge(phase, reply(code))
            except BackendError as error:
                answers.add(error.reply.code // 100)
    assert answers == {4, 5}, "a failure is told to recipients as anything but 4xx or 5xx"
