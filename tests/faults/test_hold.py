"""Users on `hold` and `reject`: parked until their route changes, for a limited time, a limited number of sessions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.conftest import Move
from tests.support.backend import FakeBackend
from tests.support.patience import SOON
from tests.support.proxy import BOTH_MODES, ProxyProcess, config_of
from tests.support.script import Hang, Pause, Script, say

pytestmark = BOTH_MODES


@contextmanager
def held_for(seconds: float) -> Iterator[Move]:
    with FakeBackend() as old, FakeBackend() as new:
        users = {"h": "hold", "h2": "hold", "v": "old", "r": "reject"}
        config = config_of({"old": old, "new": new}, users, ignoreDomain=True, hold_timeout=seconds, hold_limit=2)
        with ProxyProcess(config) as proxy:
            yield Move(old, new, proxy)


@pytest.fixture
def holding() -> Iterator[Move]:
    """Held for longer than a client waits for a reply here: what is answered was not held to the end."""
    with held_for(3 * SOON) as move:
        yield move


def test_a_held_recipient_goes_where_the_route_then_points(holding: Move) -> None:
    with holding.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<v@x>\r\nRCPT TO:<h@x>\r\nRCPT TO:<v@x>\r\nDATA\r\n")
        assert client.reply().code == 250
        time.sleep(0.3)
        holding.proxy.route("h", "new")
        assert [client.reply().code for _ in range(4)] == [250, 250, 250, 354]
        client.send(b"x\r\n.\r\n")
        assert [client.reply().positive for _ in range(3)] == [True] * 3
        client.quit()
    assert [recipient.path for recipient in holding.new.transactions()[0].recipients] == ["h@x"]


def test_a_held_recipient_may_come_to_be_rejected(holding: Move) -> None:
    with holding.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<h@x>\r\n")
        assert client.reply().code == 250
        assert client.silent(0.2)
        holding.proxy.route("h", "reject")
        assert client.reply().text.startswith("450 4.2.1")
        client.quit()


def test_an_unrelated_reload_does_not_end_a_hold(holding: Move) -> None:
    with holding.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<h@x>\r\n")
        assert client.reply().code == 250
        holding.proxy.route("v", "new")
        assert client.silent(0.3)
        holding.proxy.route("h", "new")
        assert client.reply().positive
        client.quit()


def test_a_hold_ends_after_its_time() -> None:
    with held_for(1.5) as holding, holding.proxy.client() as client:
        begun = time.monotonic()
        outcome = client.deliver("s@x", ["h@x", "v@x"])
        assert outcome.verdict(0).text.startswith("450 4.2.1")
        assert outcome.verdict(1).positive
        assert 1.2 < time.monotonic() - begun < SOON
        client.quit()


def test_at_most_so_many_sessions_are_held(holding: Move) -> None:
    with holding.proxy.client() as one, holding.proxy.client() as two, holding.proxy.client() as three:
        for client, user in ((one, b"h"), (two, b"h2")):
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<" + user + b"@x>\r\n")
            assert client.reply().code == 250
            assert client.silent(0.1)
        outcome = three.deliver("t@x", ["h@x", "v@x"])
        assert outcome.verdict(0).text.startswith("450 4.2.1")
        assert outcome.verdict(1).positive
        three.quit()
        holding.proxy.config["users"]["h2"] = "new"
        holding.proxy.route("h", "new")
        assert one.reply().positive and two.reply().positive
        one.quit()
        two.quit()


def test_rejected_and_unknown_users_touch_no_backend(holding: Move) -> None:
    with holding.proxy.client() as client:
        outcome = client.deliver("s@x", ["r@x", "nobody@x"])
        assert [reply.text[:9] for reply in outcome.rcpts] == ["450 4.2.1", "450 4.1.1"]
        client.quit()
    assert not holding.old.connections and not holding.new.connections


@pytest.mark.parametrize("recipients", [("h", "v"), ("v", "h"), ("h", "v", "h2")])
def test_the_reload_that_ends_a_hold_may_move_those_who_were_not_held(
    holding: Move, recipients: tuple[str, ...]
) -> None:
    rcpts = b"".join(b"RCPT TO:<%s@x>\r\n" % user.encode() for user in recipients)
    with holding.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x>\r\n" + rcpts + b"DATA\r\n")
        assert client.reply().code == 250
        time.sleep(0.3)
        holding.proxy.config["users"].update(h="new", h2="new")
        holding.proxy.route("v", "new")
        assert [client.reply().code for _ in recipients] == [250] * len(recipients)
        assert client.reply().code == 354
        client.send(b"x\r\n.\r\n")
        codes = dict(zip(recipients, [client.reply().code for _ in recipients], strict=True))
        client.quit()
    assert codes == dict.fromkeys(recipients, 250) | {"v": 451}
    assert not any(seen.dotted for seen in holding.old.transactions())


def test_reject_during_a_slow_rcpt_is_found_at_the_commit_point(holding: Move) -> None:
    holding.old.script = Script(rcpt=(Pause(0.4), *say("250 2.1.5 ok")))
    with holding.proxy.client() as client:
        client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<v@x>\r\n")
        assert client.reply().code == 250
        holding.proxy.route("v", "reject")
        reply = client.reply()
        if reply.positive:
            assert client.command("DATA").code == 354
            client.send(b"x\r\n.\r\n")
            reply = client.reply()
        assert reply.code in (450, 451)
        assert not any(seen.dotted for seen in holding.old.transactions())
        client.quit()


def test_a_hung_backend_does_not_stop_a_reload(holding: Move) -> None:
    holding.old.script = Script(rcpt=(Hang(),))
    with holding.proxy.client() as stuck:
        stuck.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<v@x>\r\n")
        assert stuck.reply().code == 250
        holding.proxy.route("v", "new")
        with holding.proxy.client() as client:
            assert client.deliver("t@x", ["v@x"]).verdict(0).positive
            client.quit()
