"""Every step has a deadline, and it is absolute: a peer that gives a byte now and then buys no time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Pair
from tests.support.backend import FakeBackend
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import BodyTrigger, Drip, Flood, Hang, Pause, Script, say

# Long enough for a busy machine to do what is to be done in time.
SHORT = {"connect": 1.5, "greeting": 1.5, "command": 1.5, "data_write": 1.5, "final_reply": 2.5}


@pytest.fixture(scope="module")
def quick() -> Iterator[Pair]:
    with (
        FakeBackend() as a,
        FakeBackend(transport="tcp", receive_buffer=4096) as b,
        ProxyProcess(config_of({"a": a, "b": b}, timeouts=SHORT)) as proxy,
    ):
        yield Pair(proxy, a, b)


@pytest.mark.parametrize(
    "phase, owner", [(phase, "a") for phase in ("greeting", "lhlo", "mail", "rcpt", "data", "final")] + [("final", "b")]
)
def test_many_lines_buy_no_time(quick: Pair, phase: str, owner: str) -> None:
    """Whole lines of one endless reply, each well within the deadline."""
    backend: FakeBackend = getattr(quick, owner)
    backend.script = Script().at(phase, tuple(step for _ in range(300) for step in (*say("250-more"), Pause(0.15))))
    with quick.proxy.client() as client:
        begun = time.monotonic()
        outcome = client.deliver("s@x", [f"u@{owner}", f"v@{owner}"])
        assert time.monotonic() - begun < SOON
        assert outcome.verdict(0).code == outcome.verdict(1).code == 451
        client.quit()


def test_final_replies_share_one_deadline(quick: Pair) -> None:
    """Two backends, each with replies that come one by one: the deadline counts from the client's dot, for all."""
    for backend in (quick.a, quick.b):
        backend.script = Script(final=(Pause(1.0), *say("250 2.0.0 stored")))
    with quick.proxy.client() as client:
        outcome = client.envelope("s@x", [f"u{number}@{'ab'[number % 2]}" for number in range(60)])
        begun = time.monotonic()
        client.finals_after(outcome, b"x\r\n.\r\n")
        assert time.monotonic() - begun < SOON
        told = [outcome.verdict(position).text[:9] for position in range(60)]
        assert told[:2] == ["250 2.0.0"] * 2 and told[6:] == ["451 4.4.2"] * 54
        client.quit()


@pytest.mark.parametrize("pieces", [(b"x\r\n.\r\n",), (b"x\r\n", b"y\r\n.\r\n"), (b"x\r\n", b"y\r\n", b".\r\n")])
def test_the_final_reply_of_a_slow_client_counts_from_its_dot(quick: Pair, pieces: tuple[bytes, ...]) -> None:
    """Longer than the whole deadline between 354 and the dot, and a backend that takes most of it then."""
    quick.a.script = Script(final=(Pause(1.3), *say("250 2.0.0 stored")))
    with quick.proxy.client() as client:
        outcome = client.envelope("s@x", ["u@a"])
        for piece in pieces[:-1]:
            time.sleep(1.5)
            client.send(piece)
        time.sleep(1.5 if len(pieces) > 1 else 3.0)
        client.finals_after(outcome, pieces[-1])
        assert outcome.verdict(0).text[:9] == "250 2.0.0"
        client.quit()


def test_a_stalled_backend_delays_the_body_once() -> None:
    limit = 5.0
    stalled = Script(body=BodyTrigger(1000, (Hang(),)))
    with (
        FakeBackend(stalled) as a,
        FakeBackend(stalled, transport="tcp", receive_buffer=4096) as b,
        ProxyProcess(config_of({"a": a, "b": b}, timeouts={**SHORT, "data_write": limit})) as proxy,
        proxy.client() as client,
    ):
        outcome = client.envelope("s@x", ["u@a", "u@b"])
        begun = time.monotonic()
        client.finals_after(outcome, (b"x" * 78 + b"\r\n") * 100_000 + b".\r\n")
        assert time.monotonic() - begun < 2 * limit
        assert [outcome.verdict(position).text[:9] for position in (0, 1)] == ["451 4.4.2"] * 2
        client.quit()


def test_a_refused_connect_is_answered_at_once() -> None:
    with FakeBackend(peer="refused") as refused, FakeBackend(peer="full") as full, FakeBackend(peer="absent") as absent:
        backends = {"refused": refused, "full": full, "absent": absent}
        with ProxyProcess(config_of(backends, timeouts={"connect": 60})) as proxy, proxy.client() as client:
            begun = time.monotonic()
            outcome = client.deliver("s@x", ["u@refused", "u@full", "u@absent"])
            assert time.monotonic() - begun < SOON
            assert [reply.text[:9] for reply in outcome.rcpts] == ["451 4.4.1"] * 3
            client.quit()


def test_a_backend_that_never_reads_its_commands(quick: Pair) -> None:
    """A thousand recipients are more than a small window holds: writing commands has its deadline too."""
    quick.b.script = Script(mail=(Hang(),))
    with quick.proxy.client() as client:
        begun = time.monotonic()
        outcome = client.deliver("s@x", [f"{'x' * 60}{number}@b" for number in range(900)] + ["u@a"])
        assert time.monotonic() - begun < SOON
        assert {reply.text[:9] for reply in outcome.rcpts[:900]} == {"451 4.4.2"}
        client.quit()


def test_a_backend_that_floods_while_it_should_read(quick: Pair) -> None:
    quick.a.script = Script(body=BodyTrigger(1000, (Flood(b"250 2.0.0 stored\r\n", 8 << 20), Hang())))
    before = quick.proxy.status("VmHWM")
    with quick.proxy.client() as client:
        outcome = client.envelope("s@x", ["u@a", "u@b"])
        begun = time.monotonic()
        client.send((b"x" * 78 + b"\r\n") * 1000)
        time.sleep(0.1)
        quick.b.script = Script()
        client.finals_after(outcome, (b"x" * 78 + b"\r\n") * 50_000 + b".\r\n")
        assert time.monotonic() - begun < SOON
        assert outcome.verdict(0).code == 451
        client.quit()
    assert quick.proxy.status("VmHWM") - before < 2048


def test_an_idle_proxy_does_not_poll(pair: Pair) -> None:
    def cost() -> tuple[int, int]:
        wakeups = ticks = 0
        for task in Path(f"/proc/{pair.proxy.pid}/task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    wakeups += int(line.split()[1])
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return wakeups, ticks

    with pair.proxy.client() as client:  # an open session, nothing to do
        time.sleep(0.3)
        before = cost()
        time.sleep(2)
        after = cost()
        client.quit()
    assert after[0] - before[0] <= 10, f"{after[0] - before[0]} wake-ups in 2 s"
    assert after[1] - before[1] <= 2


def test_a_drip_in_the_greeting_of_one_does_not_delay_the_other(quick: Pair) -> None:
    """Replies to RCPTs that came together go out together, after the one deadline that the drip would outlast."""
    quick.a.script = Script(greeting=(Drip(b"220 " + b"x" * 400 + b"\r\n", 0.1),))
    quick.b.script = Script()
    with quick.proxy.client() as client:
        begun = time.monotonic()
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@b>\r\nRCPT TO:<u@a>\r\n")
        assert client.reply().code == 250
        assert client.reply().positive
        assert client.reply().text.startswith("451 4.4.2")
        assert time.monotonic() - begun < SOON
        client.quit()
