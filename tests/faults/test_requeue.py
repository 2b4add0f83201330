# SPDX-License-Identifier: GPL-3.0-or-later
"""`requeue` against a scripted proxy and a scripted postqueue: what is run, and what becomes of each mail."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtp_proxy.ctl.client import ControlClient, ControlError
from lmtp_proxy.ctl.mta import Mta
from lmtp_proxy.ctl.requeue import RequeueOutcome, requeue
from lmtp_proxy.text import zoned_time
from tests.support.ctl import FakeControl, Run, ctl, http
from tests.support.patience import SOON

RULES = {"case_sensitive": False, "recipient_delimiter": "+", "ignore_domain": True, "default_domain": ""}


def waits(coming: int = 0, /, unnamed: dict[str, list[Any]] | None = None, **users: dict[str, float]) -> bytes:
    """What the proxy says: of each user the queue ids, and when they were deferred last; how many are coming in.

    unnamed: by user, what `nameless` makes.
    """

    def rows(ids: dict[str, float]) -> list[dict[str, Any]]:
        return [{"queue_id": each, "first": 1, "last": last, "count": 1, "why": "450 x"} for each, last in ids.items()]

    nameless_of = unnamed or {}
    document = {
        user: {"delivered": [], "deferred": rows(ids), "unnamed": nameless_of.get(user, [])}
        for user, ids in users.items()
    }
    told: dict[str, Any] = {"receipts": "/r", "instance": "i", "after_crash": None, "gaps": [], "cut_off": coming}
    told |= {"mailboxes": {user: user for user in users}, "key_rules": RULES}
    return http(200, {**told, "users": document})


def nameless(count: int, last: float, *, forwarded: bool = True) -> list[dict[str, Any]]:
    """So many deferrals without a queue id. forwarded: their client says XFORWARD."""
    return [{"forwarded": forwarded, "first": 1, "last": last, "count": count, "why": "450 x"}]


class Postqueue:
    """A command that writes down how it was called. queue: what -j lists. code: of -i, a line of sh."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "post queue"
        self._calls = directory / "calls"
        self._calls.touch()
        self.queue(None)
        self.code("exit 0")

    def queue(self, queues: dict[str, str] | None, **recipients: list[str]) -> None:
        """queues: by id; None for a Postfix that cannot list them. recipients: by id, those that still wait."""
        lines = "".join(
            json.dumps({
                "queue_id": queue_id,
                "queue_name": queue,
                "recipients": [{"address": to, "delay_reason": "said"} for to in recipients.get(queue_id, ["x@y"])],
            }) + "\n"
            for queue_id, queue in (queues or {}).items()
        )  # fmt: skip
        self.path.with_name("queue").write_text("no JSON" if queues is None else lines)

    def code(self, code: str) -> None:
        text = f"""#!/bin/sh
if [ "$1" = -j ]; then cat "{self.path.with_name("queue")}"; exit; fi
printf '%s\\n' "$*" >> "{self._calls}"
{code}
"""
        new = self.path.with_name("new")
        new.write_text(text)
        new.chmod(new.stat().st_mode | stat.S_IXUSR)
        os.rename(new, self.path)

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()


@pytest.fixture
def postqueue(tmp_path: Path) -> Postqueue:
    return Postqueue(tmp_path)


@pytest.fixture
def run(postqueue: Postqueue) -> Callable[..., RequeueOutcome]:
    def call(*answers: bytes, wait: float = 20.0, users: tuple[str, ...] = ("alice",)) -> RequeueOutcome:
        with FakeControl({"POST /receipts": list(answers)}) as control:
            return requeue(ControlClient(control.path), users, Mta("postfix", (str(postqueue.path),)), wait=wait)

    return call


def fates(done: RequeueOutcome) -> list[tuple[str, str, str]]:
    return [(mail.user, mail.queue_id, mail.fate) for mail in done.mails]


def test_the_command() -> None:
    assert Mta().attempt("4fX") == ("postqueue", "-i", "4fX")
    assert Mta("postfix", ("ssh", "mx", "postqueue")).attempt("4fX") == ("ssh", "mx", "postqueue", "-i", "4fX")


def test_nothing_waits(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    done = run(waits(alice={}))
    assert (fates(done), done.done, postqueue.calls) == ([], True, [])


def test_each_mail_once_although_two_users_wait_for_it(
    run: Callable[..., RequeueOutcome], postqueue: Postqueue
) -> None:
    both = waits(alice={"A": 1, "B": 2}, bob={"B": 2})
    done = run(both, waits(alice={}, bob={}), users=("alice", "bob"))
    assert postqueue.calls == ["-i A", "-i B"]
    assert fates(done) == [("alice", "A", "arrived"), ("alice", "B", "arrived"), ("bob", "B", "arrived")]
    assert done.done and not done.failed and done.ids("alice") == ["A", "B"]


def test_again_until_it_has_come(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    still = waits(alice={"A": 1.0})
    done = run(still, still, still, waits(alice={}))
    assert postqueue.calls == ["-i A"] * 3
    assert fates(done) == [("alice", "A", "arrived")]


def test_deferred_again_is_not_tried_for_ever(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    done = run(waits(alice={"A": 1.0, "B": 1.0}), waits(alice={"A": 2.0}))
    assert postqueue.calls == ["-i A", "-i B"]
    assert fates(done) == [("alice", "A", "deferred again"), ("alice", "B", "arrived")]
    assert not done.done


def test_what_is_deferred_meanwhile_is_tried_as_well(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    done = run(waits(alice={"A": 1.0}), waits(alice={"A": 1.0, "B": 2.0}), waits(alice={}))
    assert postqueue.calls == ["-i A", "-i A", "-i B"]
    assert done.ids("alice") == ["A", "B"] and done.done


def test_what_is_still_coming_in_is_waited_for(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    coming = waits(1, alice={})
    done = run(coming, coming, waits(alice={"L": 5.0}), waits(alice={}))
    assert fates(done) == [("alice", "L", "arrived")] and postqueue.calls == ["-i L"]
    assert run(coming, wait=0.2).mails == [], "but not for ever"


def test_the_time_is_up(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    done = run(waits(alice={"A": 1.0}), wait=0.3)
    assert fates(done) == [("alice", "A", "not tried yet")] and not done.done
    assert 0.3 <= done.seconds < SOON


def test_what_has_left_the_queue_or_is_on_hold_is_not_waited_for(
    run: Callable[..., RequeueOutcome], postqueue: Postqueue
) -> None:
    postqueue.queue({"H": "hold", "X": "deferred"})
    done = run(waits(alice={"G": 1.0, "H": 1.0}), wait=30)
    assert fates(done) == [("alice", "G", "not in the queue"), ("alice", "H", "on hold in the queue")]
    assert done.seconds < 25 and not done.done


def test_an_old_postfix_cannot_list_its_queue(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    done = run(waits(alice={"A": 1.0}), wait=1.5)
    assert fates(done) == [("alice", "A", "not tried yet")]


def test_a_command_that_fails(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    postqueue.code('[ "$2" = A ] || exit 0; echo "postqueue: fatal: no" >&2; exit 69')
    done = run(waits(alice={"A": 1.0, "B": 1.0}), waits(alice={"A": 1.0}))
    assert fates(done) == [("alice", "A", "postqueue failed"), ("alice", "B", "arrived")]
    [failed] = done.failed
    assert (failed.status, failed.output) == (69, "postqueue: fatal: no")


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with FakeControl({"POST /receipts": [waits(alice={"A": 1.0, "B": 1.0})]}) as control:
        done = requeue(ControlClient(control.path), ["alice"], Mta("postfix", (str(tmp_path / "none"),)))
    assert [mail.fate for mail in done.mails] == ["postqueue failed"] * 2
    [failed] = done.failed
    assert failed.status is None and failed.output == "cannot be run: No such file or directory"


def test_a_postqueue_that_cron_would_not_find(
    postqueue: Postqueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cron's PATH is /usr/bin:/bin, and postqueue is in /usr/sbin."""
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("lmtp_proxy.ctl.mta.SBIN", f"{tmp_path}/none:{postqueue.path.parent}")
    answers = [waits(alice={"A": 1.0}), waits(alice={})]
    with FakeControl({"POST /receipts": answers}) as control:
        done = requeue(ControlClient(control.path), ["alice"], Mta("postfix", ("post queue",)))
    assert done.done and not done.failed and len(postqueue.calls) == 1


def test_a_thousand_users_a_question() -> None:
    answers = [waits(**{f"u{number}": {} for number in range(start, start + 1000)}) for start in (0, 1000)]
    with FakeControl({"POST /receipts": answers}) as control:
        requeue(ControlClient(control.path), [f"u{number}" for number in range(1500)])
        assert [len(body["users"]) for body in control.bodies("POST /receipts")] == [1000, 500]


def test_no_receipts() -> None:
    refusal = http(409, {"error": "config.receipts is not set"})
    with (
        FakeControl({"POST /receipts": [refusal]}) as control,
        pytest.raises(ControlError, match=r"config\.receipts is not set"),
    ):
        requeue(ControlClient(control.path), ["alice"])


# --- mail without a queue id ----------------------------------------------------------------------------------------


def found_of(done: RequeueOutcome) -> list[tuple[str, str, str]]:
    assert all(mail.found for mail in done.mails)
    return fates(done)


def test_mail_without_an_id_is_found_by_its_recipient(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    postqueue.queue({"A": "deferred", "B": "deferred"}, A=["Alice+cron@example.org", "bob@x"], B=["carol@x"])
    # It leaves the queue, as far as this recipient is concerned, when it is tried.
    postqueue.code(f"""grep -v '"A"' "{postqueue.path.parent}/queue" >"{postqueue.path.parent}/q"
mv "{postqueue.path.parent}/q" "{postqueue.path.parent}/queue" """)
    done = run(waits(unnamed={"alice": nameless(2, 5.0)}, alice={}))
    assert postqueue.calls[0] == "-i A" and set(postqueue.calls) == {"-i A"}
    assert found_of(done) == [("alice", "A", "not in the queue")] and done.done
    assert (done.silent, done.listed) == (0, True)


def test_it_may_wait_for_another_recipient_still(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    postqueue.queue({"A": "deferred"}, A=["alice", "bob"])
    postqueue.code(f"""sed -i 's/"alice"/"dave"/' "{postqueue.path.parent}/queue" """)
    done = run(waits(unnamed={"alice": nameless(1, 5.0)}, alice={}))
    assert found_of(done) == [("alice", "A", "not in the queue")] and done.done


def test_what_has_no_id_and_is_deferred_again(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    postqueue.queue({"A": "deferred", "H": "hold"}, A=["alice"], H=["alice"])
    before, after = (waits(unnamed={"alice": nameless(count, float(count))}, alice={}) for count in (1, 2))
    done = run(before, after)
    assert postqueue.calls == ["-i A"]
    assert found_of(done) == [("alice", "A", "deferred again"), ("alice", "H", "on hold in the queue")]
    assert not done.done


def test_without_ids_and_without_mail_in_the_queue(run: Callable[..., RequeueOutcome], postqueue: Postqueue) -> None:
    """It has come since, if Postfix' queue is the one that is looked at; of a client that says nothing who knows."""
    postqueue.queue({"B": "deferred"}, B=["bob@x"])
    done = run(waits(unnamed={"alice": nameless(1, 5.0)}, alice={}))
    assert (done.mails, postqueue.calls, done.done) == ([], [], True)
    done = run(waits(unnamed={"alice": nameless(3, 5.0, forwarded=False)}, alice={}))
    assert (done.mails, postqueue.calls, done.done, done.silent) == ([], [], False, 3)
    postqueue.queue(None)
    done = run(waits(unnamed={"alice": nameless(1, 5.0)}, alice={}))
    assert not done.done and not done.listed, "a queue that cannot be listed proves nothing"


# --- other MTAs ------------------------------------------------------------------------------------------------------


class Smtpctl:
    """An OpenSMTPD whose queue is a file; `schedule ID` is written down, and takes it out of the queue if it may."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "smtpctl"
        self._queue, self._calls = directory / "smtpd-queue", directory / "smtpd-calls"
        self._calls.touch()
        self.path.write_text(f"""#!/bin/sh
if [ "$1" = show ]; then cat "{self._queue}"; exit; fi
echo "$*" >> "{self._calls}"
grep -v "^$2|.*free" "{self._queue}" > "{self._queue}.new"; mv "{self._queue}.new" "{self._queue}"
""")
        self.path.chmod(0o755)

    def queue(self, *lines: tuple[str, str, str]) -> None:
        """Id, recipient, and `free` if it leaves the queue when it is tried."""
        text = [f"{each}|inet4|mda||s@x|{to}|{to}|1|1|0|1|pending|9|{how}\n" for each, to, how in lines]
        self._queue.write_text("".join(text))

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()


def test_mail_of_another_mta_is_found_in_its_queue(tmp_path: Path) -> None:
    """Its clients say no XFORWARD. Only mail for these users is tried; and it is known that none waits any more."""
    smtpctl = Smtpctl(tmp_path)
    smtpctl.queue(("a1", "Alice+x@any", "free"), ("b1", "bob@any", "free"), ("a2", "malice@any", "free"))
    silent = waits(unnamed={"alice": nameless(3, 5.0, forwarded=False)}, alice={})
    options = ("requeue", "--mta", "opensmtpd", "--command", str(smtpctl.path), "alice")
    done = verb("--json", *options, "--print", answers=[silent])
    assert (done.status, done.document["commands"]) == (0, [[str(smtpctl.path), "schedule", "a1"]])
    assert smtpctl.calls == []
    done = verb(*options, answers=[silent])
    assert (done.status, done.err, smtpctl.calls) == (0, "", ["schedule a1"])
    assert "alice: 1 not in the queue" in done.out and "    a1: in the queue no more" in done.out
    done = verb(*options, answers=[silent])
    assert done.status == 0 and len(smtpctl.calls) == 1, "nothing is there any more"


def test_mail_of_another_mta_that_is_deferred_again(tmp_path: Path) -> None:
    smtpctl = Smtpctl(tmp_path)
    smtpctl.queue(("a1", "alice@any", ""))
    first, then = (waits(unnamed={"alice": nameless(1, last, forwarded=False)}, alice={}) for last in (5.0, 6.0))
    done = verb("requeue", "--mta", "opensmtpd", "--command", str(smtpctl.path), "alice", answers=[first, then])
    assert done.status == 3 and done.error == "1 mail did not come through: run it again later"
    done = verb("requeue", "--mta", "opensmtpd", "--command", "/none/smtpctl", "alice", answers=[first])
    assert (
        done.status == 3
        and done.error == "mail without a queue id may wait, and smtpctl show queue cannot list the queue"
    )


def test_an_id_of_the_mta_before_is_none_of_the_next_one(tmp_path: Path) -> None:
    smtpctl = Smtpctl(tmp_path)
    smtpctl.queue(("a1", "alice@any", "free"))
    done = verb(
        "requeue", "--mta", "opensmtpd", "--command", str(smtpctl.path), "alice", answers=[waits(alice={"P": 1})]
    )
    assert (done.status, smtpctl.calls) == (0, ["schedule a1"])


def test_a_command_of_the_site(tmp_path: Path) -> None:
    """Once for each user for whom something was deferred; it is believed, and the proxy is asked once more."""
    script = tmp_path / "again"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit $(cat {tmp_path}/status)\n')
    script.chmod(0o755)
    (tmp_path / "status").write_text("0")
    first = waits(unnamed={"alice": nameless(2, 5.0, forwarded=False)}, alice={}, bob={}, carol={"C": 1.0})
    own = ("requeue", "--mta", f"{script} -- {{user}}")
    done = verb(*own, "alice", "bob", "carol", answers=[first])
    assert done.status == 0 and (tmp_path / "calls").read_text() == "-- alice\n-- carol\n"
    assert done.out.splitlines()[:3] == [
        "alice: tried by the command", "bob: nothing waits", "carol: tried by the command"
    ]  # fmt: skip
    done = verb("--json", *own, "--print", "alice", "bob", answers=[first])
    assert done.document["commands"] == [[str(script), "--", "alice"], [str(script), "--", "carol"]]
    again = waits(unnamed={"alice": nameless(3, 6.0, forwarded=False)}, alice={})
    done = verb(*own, "alice", answers=[first, again])
    assert done.status == 3 and "alice: deferred again (450 x)" in done.out
    (tmp_path / "status").write_text("7")
    done = verb(*own, "alice", answers=[first])
    assert done.status == 1 and done.error == "the command failed"
    assert f"{script} -- alice: exit status 7" in done.err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--mta", "qmail"), "--mta: must be postfix, exim, sendmail, opensmtpd, or a command with {user} in it"),
        (
            ("--mta", "r {user}", "--command", "x"),
            "--command is how an MTA's program is called, and --mta is a command",
        ),
    ],
)
def test_no_mta(arguments: tuple[str, ...], error: str) -> None:
    done = ctl("--socket", "/none", "requeue", *arguments, "alice")
    assert done.status == 64 and error in done.err


# --- the verbs -------------------------------------------------------------------------------------------------------


def verb(*arguments: str, answers: list[bytes]) -> Run:
    with FakeControl({"POST /receipts": answers}) as control:
        return ctl("--socket", control.path, *arguments)


def test_requeue_says_what_it_did(postqueue: Postqueue) -> None:
    command = f'"{postqueue.path}"'
    done = verb(
        *("requeue", "--postqueue", command, "alice", "bob"),
        answers=[waits(alice={"A": 1.0}, bob={}), waits(alice={}, bob={})],
    )
    assert done.status == 0 and not done.err
    assert done.out.splitlines()[:3] == ["alice: 1 arrived", "    A: arrived", "bob: nothing waits"]
    done = verb("requeue", "--postqueue", command, "alice", answers=[waits(alice={"A": 1}), waits(alice={"A": 2})])
    assert done.status == 3 and done.error == "1 mail did not come through: run it again later"
    assert "    A: deferred again (450 x)" in done.out
    postqueue.code("echo no; exit 1")
    done = verb("--json", "requeue", "--postqueue", command, "alice", answers=[waits(alice={"A": 1})])
    assert done.status == 1 and done.error == "postqueue failed; is it on this machine? see --command"
    assert done.document["errors"] == [f"'{postqueue.path}' -i A: exit status 1: no"]
    assert done.document["mails"] == [
        {"user": "alice", "queue_id": "A", "fate": "postqueue failed", "why": "450 x", "found": False}
    ]


def test_requeue_prints_commands_for_a_shell() -> None:
    options = ("--print", "--postqueue", "'/opt/post fix/postqueue' -c /etc/p")
    done = verb("requeue", *options, "alice", answers=[waits(alice={"A": 1.0, "B": 2.0})])
    lines = [f"'/opt/post fix/postqueue' -c /etc/p -i {queue_id}" for queue_id in "AB"]
    assert (done.status, done.out.splitlines()) == (0, lines)


def test_requeue_says_that_ids_are_missing(postqueue: Postqueue) -> None:
    command = f'"{postqueue.path}"'
    postqueue.queue({})
    silent = waits(unnamed={"alice": nameless(3, 5.0, forwarded=False)}, alice={}, bob={})
    done = verb("requeue", "--postqueue", command, "alice", "bob", answers=[silent])
    assert done.status == 3
    assert (
        done.error.startswith("3 deferrals without a queue id: ") and "lmtp_send_xforward_command = yes" in done.error
    )
    assert done.out.split("\n0 mails")[0].replace("\n    ", " ") == (
        f"alice: waiting, id unknown (3 deferrals, the last {zoned_time(5)}): none of it is in the queue now\n"
        "bob: nothing waits"
    )
    done = verb("--json", "requeue", "--print", "--postqueue", command, "alice", answers=[silent])
    assert done.status == 3 and "lmtp_send_xforward_command" in done.error
    row = {"forwarded": False, "count": 3, "last": 5.0, "why": "450 x"}
    assert done.document["unnamed"] == {"alice": [row]} and done.document["commands"] == []
    local = waits(unnamed={"alice": nameless(1, 5.0)}, alice={})
    assert verb("requeue", "--postqueue", command, "alice", answers=[local]).status == 0
    postqueue.queue(None)
    done = verb("requeue", "--postqueue", command, "alice", answers=[local])
    assert done.status == 3
    assert done.error == "mail without a queue id may wait, and postqueue -j cannot list the queue"


def test_receipts_of_mail_without_an_id() -> None:
    answer = waits(unnamed={"alice": nameless(1, 86400.0), "bob": nameless(2, 1.0, forwarded=False)}, alice={}, bob={})
    done = verb("receipts", "alice", "bob", answers=[answer])
    assert done.status == 0
    text = " ".join(done.out.split())
    assert text.startswith(
        f"alice waiting, id unknown: 1 deferral, {zoned_time(1)} to {zoned_time(86400)}: 450 x "
        f"bob waiting, id unknown: 2 deferrals, {zoned_time(1)}: 450 x its client says no queue ids"
    )
    assert "lmtp_send_xforward_command = yes" in text and done.out.count("xforward") == 1


@pytest.mark.parametrize("command", ["", "'", " "])
def test_no_command(command: str) -> None:
    assert ctl("--socket", "/none", "requeue", "--postqueue", command, "alice").status == 64


def test_receipts_for_people() -> None:
    known = {
        "delivered": [
            {"backend": "old", "first": 0.0, "last": 0.0, "count": 1, "uncertain": 0},
            {"backend": "new", "first": 1.0, "last": 86400.5, "count": 1234, "uncertain": 2},
        ],
        "deferred": [{"queue_id": "4fX", "first": 0.0, "last": 1.0, "count": 3, "why": "450 4.2.1 \x1b[31m later"}],
        "unnamed": [],
    }
    gaps = [{"from": None, "until": 0.0, "why": "the file was made then"}]
    gaps += [{"from": float(number), "until": None, "why": "broken"} for number in range(6)]
    crash = {"started": "t", "seconds": 3.0, "worker": None}
    answer = {"receipts": "/r", "instance": "i", "after_crash": crash, "gaps": gaps,
              "users": {"alice": known, "bob": {"delivered": [], "deferred": [], "unnamed": []}}}  # fmt: skip
    done = verb("receipts", "alice", "bob", answers=[http(200, answer)])
    assert done.status == 0
    assert done.out.splitlines()[:10] == [
        "alice",
        f"    on old: 1 delivered, {zoned_time(0)}",
        f"    on new: 1,234 delivered, 2 uncertain, {zoned_time(1)} to",
        f"        {zoned_time(86400)}",
        f"    waiting 4fX: 3 times, {zoned_time(0)} to {zoned_time(1)[:-6]}",
        f"        {zoned_time(1)[-5:]}: 450 4.2.1 \\x1b[31m later",
        "bob",
        "    nothing is known of it",
        "2 older gaps: see --json",
        f"may be incomplete from {zoned_time(1)} to now: broken",
    ]
    assert "lmtp-proxy started 3.0 s ago after one that had died" in done.out
    document = verb("--json", "receipts", "alice", answers=[http(200, answer)]).document
    assert document["users"]["alice"] == known and document["gaps"] == gaps
