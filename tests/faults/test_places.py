"""Mail to several stores, one of which is slow to have a connection: what the others and their users notice of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from tests.faults.test_pool import codes, verbs
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.control import Control, add_control
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import FULL_OFFER, HEALTHY, Await, Close, Pause, Script, say

LOCKSTEP = tuple(word for word in FULL_OFFER if word != "PIPELINING")
CONNECT = 6.0  # seconds: long enough for others to be served meanwhile, on a busy machine, too
TIMEOUTS = {"connect": CONNECT, "greeting": CONNECT, "command": 20, "final_reply": 30}
ONE = {"max_connections": 1, "max_per_user": 100, "idle_timeout": 30}


@contextmanager
def site(backends: dict[str, FakeBackend], **keys: Mapping[str, object]) -> Iterator[ProxyProcess]:
    """A proxy with these backends, in which each that is named has these keys, too. The others get one connection."""
    config = config_of(backends, timeouts=TIMEOUTS)
    for name, backend in backends.items():
        config["backends"][name] = {**backend.config, **ONE, **keys.get(name, {})}
    with ProxyProcess(config, workers=1) as proxy:
        yield proxy


def begin(client: LmtpClient, *recipients: str, data: bool = True, sender: str = "slow@x") -> None:
    """All in one write. The reply to MAIL is read."""
    lines = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{each}>" for each in recipients), *["DATA"] * data]
    client.send("".join(line + "\r\n" for line in lines).encode())
    assert client.reply().code == 250


def deliver(proxy: ProxyProcess, *recipients: str, sender: str = "other@x") -> tuple[list[int], float]:
    """One message on a connection of its own; the codes, and how long it took."""
    with proxy.client() as client:
        began = time.monotonic()
        told = codes(client.deliver(sender, recipients))
        lasted = time.monotonic() - began
        client.quit()
    return told, lasted


def end(client: LmtpClient, number: int) -> list[int]:
    """The rest of a message, and its final replies."""
    assert client.reply().code == 354
    client.send(b"x\r\n.\r\n")
    return [client.reply().code for _ in range(number)]


@contextmanager
def away(how: str, opened: threading.Event) -> Iterator[FakeBackend]:
    """A store to which a connection takes long. Where it greets at last, that is when `opened` is set."""
    if how == "no answer to SYN":
        with FakeBackend(transport="tcp", peer="full") as backend:
            yield backend
    else:
        with FakeBackend(replace(HEALTHY, greeting=(Await(opened), *say("220 at last")))) as backend:
            yield backend


AWAY = ["no answer to SYN", "no greeting"]


# --- who is known is answered, and their store is free ----------------------------------------------------------------


@pytest.mark.parametrize("how", AWAY)
def test_who_stands_before_a_recipient_of_a_dead_store_is_answered_first(how: str) -> None:
    with FakeBackend() as well, away(how, threading.Event()) as dead, site({"a": well, "z": dead}) as proxy:
        with proxy.client() as client:
            began = time.monotonic()
            begin(client, "u@a", "nobody@nowhere", "v@z", "w@a", "x@z")
            assert [client.reply().code for _ in range(2)] == [250, 450]
            assert time.monotonic() - began < CONNECT / 2
            assert [client.reply().code for _ in range(3)] == [451, 250, 451]
            assert CONNECT - 1 < time.monotonic() - began < CONNECT + SOON / 2, "it is waited for once"
            assert end(client, 2) == [250, 250]
            client.quit()
        assert [[seen.path for seen in each.recipients] for each in well.transactions() if each.dotted] == [
            ["u@a", "w@a"]
        ]


@pytest.mark.parametrize("how", AWAY)
@pytest.mark.parametrize("order", [["u@a", "v@z"], ["v@z", "u@a"]], ids=["before", "behind"])
def test_another_users_mail_does_not_wait_for_the_dead_store(how: str, order: list[str]) -> None:
    """The only place at the healthy store is not held while the dead one is waited for."""
    with FakeBackend() as well, away(how, threading.Event()) as dead, site({"a": well, "z": dead}) as proxy:
        assert deliver(proxy, "first@a")[0] == [250]  # its connection is kept
        with proxy.client() as client:
            begin(client, *order)
            assert dead.transport == "tcp" or dead.wait_for(lambda: len(dead.connections) == 1)
            for _ in range(3):
                told, lasted = deliver(proxy, "other@a")
                assert told == [250] and lasted < CONNECT / 2
            expected = {"u@a": 250, "v@z": 451}
            assert [client.reply().code for _ in range(2)] == [expected[each] for each in order]
            assert end(client, 1) == [250]
            client.quit()
        assert len([seen for seen in well.transactions("slow@x") if seen.dotted]) == 1


@pytest.mark.parametrize("order", [["u@a", "v@z"], ["v@z", "u@a"]], ids=["before", "behind"])
def test_a_restarted_store_holds_up_no_other(order: list[str]) -> None:
    keys = {"restart_grace": 20, "idle_timeout": 0}
    with (
        FakeBackend() as well,
        FakeBackend(transport="tcp") as again,
        site({"a": well, "z": again}, z=keys) as proxy,
    ):
        assert deliver(proxy, "first@a", "first@z")[0] == [250, 250]
        assert again.wait_closed(1)
        again.stop()
        with proxy.client() as client:
            began = time.monotonic()
            begin(client, *order)
            if order[0] == "u@a":
                assert client.reply().code == 250
            for _ in range(3):
                told, lasted = deliver(proxy, "other@a")
                assert told == [250] and lasted < 4
            assert time.monotonic() - began < 15
            with FakeBackend(transport="tcp", address=("127.0.0.1", again.port)) as back:
                assert [client.reply().code for _ in range(2 if order[0] == "v@z" else 1)][-1] == 250
                assert end(client, 2) == [250, 250]
                client.quit()
                assert len(back.transactions()) == 1
        assert len([seen for seen in well.transactions("slow@x") if seen.dotted]) == 1


@contextmanager
def tired(opened: threading.Event) -> Iterator[FakeBackend]:
    """A store that ends its connection at the second message, and greets the next one when `opened` is set."""
    first = replace(HEALTHY, mail_again=(*say("421 4.3.2 enough"), Close()))
    then = replace(HEALTHY, greeting=(Await(opened), *say("220 at last")))
    with FakeBackend(lambda index: then if index else first) as backend:
        yield backend


@pytest.mark.parametrize("data", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("order", [["u@a", "v@z"], ["v@z", "u@a"]], ids=["before", "behind"])
@pytest.mark.parametrize("comes", [True, False])
def test_a_connection_in_the_place_of_a_tired_one_holds_up_no_other(order: list[str], data: bool, comes: bool) -> None:
    """As one for which there was none before. A place at a store that has been told DATA is kept."""
    opened = threading.Event()
    with FakeBackend() as well, tired(opened) as store, site({"a": well, "z": store}) as proxy:
        assert deliver(proxy, "first@a", "first@z")[0] == [250, 250]
        with proxy.client() as client:
            began = time.monotonic()
            begin(client, *order, data=data)
            if order[0] == "u@a":
                assert client.reply().code == 250
            assert time.monotonic() - began < CONNECT / 2
            if not data:
                for _ in range(3):
                    told, lasted = deliver(proxy, "other@a")
                    assert told == [250] and lasted < CONNECT / 2
            if comes:
                opened.set()
            expected = {"u@a": 250, "v@z": 250 if comes else 451}
            waited_for = order if order[0] == "v@z" else order[1:]
            assert [client.reply().code for _ in waited_for] == [expected[each] for each in waited_for]
            if not data:
                client.send(b"DATA\r\n")
            assert end(client, 1 + comes) == [250] * (1 + comes)
            client.quit()
        assert [len([seen for seen in each.transactions("slow@x") if seen.dotted]) for each in (well, store)] == [
            1,
            comes,
        ]
        assert deliver(proxy, "last@a")[0] == [250]


def test_several_connections_are_opened_anew_at_the_same_time_for_data() -> None:
    """Both stores refuse it on a connection that was used before."""
    slow = replace(HEALTHY, greeting=(Pause(2), *say("220 slow")), data_again=say("452 4.4.5 enough"))
    with FakeBackend(slow) as a, FakeBackend(slow) as z, site({"a": a, "z": z}) as proxy, proxy.client() as client:
        assert codes(client.deliver("1@x", ["u@a", "u@z"], pipelined=False)) == [250, 250]
        for name in ("2@x", "3@x"):
            began = time.monotonic()
            assert codes(client.deliver(name, ["u@a", "u@z"], pipelined=False)) == [250, 250]
            assert 2 < time.monotonic() - began < 3.8
        client.quit()


# --- a place is waited for --------------------------------------------------------------------------------------------


@contextmanager
def taken(proxy: ProxyProcess, recipient: str) -> Iterator[LmtpClient]:
    """Somebody has the only place at this recipient's store, and their message does not come."""
    with proxy.client() as client:
        begin(client, recipient, sender="taker@x")
        assert [client.reply().code for _ in range(2)] == [250, 354]
        yield client


def give(client: LmtpClient) -> None:
    client.send(b"x\r\n.\r\n")
    assert client.reply().code == 250
    client.quit()


@pytest.mark.parametrize("pipelined", [True, False], ids=["at once", "one by one"])
def test_who_waits_for_a_place_gives_back_those_at_other_stores(pipelined: bool) -> None:
    with FakeBackend() as a, FakeBackend() as z, site({"a": a, "z": z}) as proxy, proxy.client() as client:
        with taken(proxy, "t@z") as taker:
            if pipelined:
                begin(client, "u@a", "v@z")
            else:
                begin(client, "u@a", data=False)
            assert client.reply().code == 250
            if not pipelined:
                client.send(b"RCPT TO:<v@z>\r\n")
                time.sleep(0.3)  # nobody tells that it waits
            told, lasted = deliver(proxy, "other@a")
            assert told == [250] and lasted < CONNECT / 2
            give(taker)
            assert client.reply().code == 250
            if not pipelined:
                client.send(b"DATA\r\n")
            assert end(client, 2) == [250, 250]
            client.quit()
        assert [len([seen for seen in each.transactions("slow@x") if seen.dotted]) for each in (a, z)] == [1, 1]


@pytest.mark.parametrize("most", [1, 4], ids=["one connection", "one of a mailbox"])
def test_a_kept_connection_that_ends_while_another_store_is_waited_for_keeps_no_place(most: int) -> None:
    """Neither at the store, nor, when all is over, at the mailbox: that of each recipient is given back once."""
    opened = threading.Event()
    opened.set()
    keys = {"a": {"max_connections": most, "max_per_user": 1}}
    with tired(opened) as a, FakeBackend() as z, site({"a": a, "z": z}, **keys) as proxy, proxy.client() as client:
        assert deliver(proxy, "first@a")[0] == [250]
        with taken(proxy, "t@z") as taker:
            began = time.monotonic()
            begin(client, "u@a", "v@z")
            assert client.reply().code == 250
            assert time.monotonic() - began < CONNECT / 2
            told, lasted = deliver(proxy, "other@a")
            assert told == [250] and lasted < CONNECT / 2
            give(taker)
        assert client.reply().code == 250
        assert end(client, 2) == [250, 250]
        assert [len([seen for seen in each.transactions("slow@x") if seen.dotted]) for each in (a, z)] == [1, 1]
        if most > 1:
            with taken(proxy, "u@a"):
                begin(client, "u@a", data=False)
                assert client.silent(0.5), "one at a time"
                assert client.reply().code == 451
        client.quit()


def test_nobody_waits_at_a_store_for_a_place_at_another_where_data_is_waited_for() -> None:
    """A place with DATA sent is not given back: the message is on its way."""
    with FakeBackend() as a, FakeBackend() as z, site({"a": a, "z": z}) as proxy:
        with taken(proxy, "t@a") as taker, proxy.client() as client:
            begin(client, "u@a", sender="waits@x")
            assert client.silent(0.5)
            give(taker)
            assert client.reply().code == 250
            assert end(client, 1) == [250]
            client.quit()
        assert [verbs(connection).count("RSET") for connection in a.connections] == [0]
        assert z.connections == []


@pytest.mark.parametrize("offer", [FULL_OFFER, LOCKSTEP], ids=["pipelining", "lockstep"])
@pytest.mark.parametrize("again", [{"u": 550}, {"w": 452}, {"u": 452, "w": 550}], ids=str)
def test_who_is_refused_when_they_are_asked_again_gets_that_as_the_final_reply(
    again: dict[str, int], offer: tuple[str, ...]
) -> None:
    with (
        FakeBackend(replace(HEALTHY, offer=offer)) as a,
        FakeBackend() as z,
        site({"a": a, "z": z}, a={"idle_timeout": 0}) as proxy,
        proxy.client() as client,
    ):
        with taken(proxy, "t@z") as taker:
            begin(client, "u@a", "no@nowhere", "w@a", "v@z", "x@a")
            assert [client.reply().code for _ in range(3)] == [250, 450, 250]
            assert a.wait_closed(1)
            refused = {f"{who}@a": say(f"{code} {code // 100}.1.1 not now") for who, code in again.items()}
            a.script = replace(HEALTHY, offer=offer, rcpt_by=refused)
            give(taker)
        assert [client.reply().code for _ in range(2)] == [250, 250]
        assert end(client, 4) == [again.get("u", 250), again.get("w", 250), 250, 250]
        client.quit()


def test_a_store_that_died_meanwhile_defers_those_it_had_accepted_and_nobody_else() -> None:
    with (
        FakeBackend() as a,
        FakeBackend() as z,
        site({"a": a, "z": z}, a={"idle_timeout": 0}) as proxy,
        proxy.client() as client,
    ):
        with taken(proxy, "t@z") as taker:
            begin(client, "u@a", "v@z", "w@a")
            assert client.reply().code == 250
            assert a.wait_closed(1)
            a.script = Script(greeting=(*say("421 4.3.2 closing"), Close()))
            give(taker)
        assert [client.reply().code for _ in range(2)] == [250, 250]
        assert end(client, 3) == [451, 250, 451]
        client.quit()
        proxy.wait_log("to=<u@a>.*status=deferred")


@pytest.mark.parametrize("leave", ["reset", "RSET"])
def test_a_client_that_goes_while_it_waits_leaves_no_place_taken(leave: str) -> None:
    with FakeBackend() as a, FakeBackend() as z, site({"a": a, "z": z}) as proxy:
        with taken(proxy, "t@z") as taker:
            with proxy.client() as client:
                begin(client, "u@a", "v@z", data=False)
                assert client.reply().code == 250
                if leave == "reset":
                    client.reset()
                else:
                    client.send(b"RSET\r\n")
                    give(taker)
                    assert [client.reply().code for _ in range(2)] == [250, 250]
                    client.quit()
            assert deliver(proxy, "other@a")[0] == [250]
            if leave == "reset":
                proxy.wait_log("from=<slow@x>.*status=aborted")
                give(taker)
        for _ in range(2):
            told, lasted = deliver(proxy, "u@a", "v@z")
            assert told == [250, 250] and lasted < CONNECT / 2
        assert not [seen for each in (a, z) for seen in each.transactions("slow@x") if seen.dotted]


def test_two_that_want_each_others_place_both_get_what_they_want() -> None:
    """One by one, in contrary orders: each has the place that the other one waits for."""
    with FakeBackend() as a, FakeBackend() as z, site({"a": a, "z": z}) as proxy, ExitStack() as stack:
        clients = {order: stack.enter_context(proxy.client()) for order in ("az", "za")}
        for order, client in clients.items():
            begin(client, f"u@{order[0]}", data=False, sender=f"{order}@x")
            assert client.reply().code == 250
        began = time.monotonic()
        for order, client in clients.items():
            client.send(f"RCPT TO:<u@{order[1]}>\r\nDATA\r\n".encode())
        ended: dict[str, list[int]] = {}

        def finish(order: str) -> None:
            assert clients[order].reply().code == 250
            ended[order] = end(clients[order], 2)
            clients[order].quit()

        threads = [threading.Thread(target=finish, args=(order,)) for order in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended == {"az": [250, 250], "za": [250, 250]}
        assert time.monotonic() - began < CONNECT


def test_many_that_want_several_places_each_get_them() -> None:
    names = "abc"
    with ExitStack() as stack:
        backends = {name: stack.enter_context(FakeBackend()) for name in names}
        proxy = stack.enter_context(site(backends, **{name: {"max_connections": 2} for name in names}))
        ended: list[int] = []

        def several(number: int) -> None:
            for round_ in range(6):
                turn = (number + round_) % 3
                order = names[turn:] + names[:turn]
                with proxy.client() as client:
                    outcome = client.deliver(
                        f"{number}.{round_}@x", [f"u@{name}" for name in order], pipelined=bool(number % 2)
                    )
                    ended.extend(codes(outcome))
                    client.quit()

        threads = [threading.Thread(target=several, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended == [250] * (8 * 6 * 3)
        for backend in backends.values():
            dotted = [seen.sender for seen in backend.transactions() if seen.dotted]
            assert len(dotted) == len(set(dotted)) == 8 * 6


def test_who_is_on_hold_keeps_no_place_at_other_stores() -> None:
    with FakeBackend() as a, FakeBackend() as z, site({"a": a, "z": z}) as proxy, proxy.client() as client:
        proxy.config["config"]["hold_timeout"] = 60
        proxy.route("held@z", "hold")
        begin(client, "u@a", data=False)
        assert client.reply().code == 250
        client.send(b"RCPT TO:<held@z>\r\nDATA\r\n")
        assert a.wait_for(lambda: verbs(a.connections[0])[-1] == "RSET")
        assert deliver(proxy, "other@a")[0] == [250]
        proxy.route("held@z", "z")
        assert client.reply().code == 250
        assert end(client, 2) == [250, 250]
        client.quit()
        assert [len([seen for seen in each.transactions("slow@x") if seen.dotted]) for each in (a, z)] == [1, 1]


def test_who_is_on_hold_in_vain_leaves_the_others_of_the_message() -> None:
    with FakeBackend() as a, FakeBackend() as z, site({"a": a, "z": z}) as proxy, proxy.client() as client:
        proxy.config["config"]["hold_timeout"] = 1
        proxy.route("held@z", "hold")
        begin(client, "u@a", data=False)
        assert client.reply().code == 250
        client.send(b"RCPT TO:<held@z>\r\nDATA\r\n")
        assert client.reply().code == 450
        assert end(client, 1) == [250]
        client.quit()


@pytest.mark.parametrize("to", ["z", "reject", "hold"])
@pytest.mark.parametrize("why", ["no place", *AWAY])
def test_who_is_moved_while_they_wait_in_vain_is_asked_for_where_they_are_now(why: str, to: str) -> None:
    with ExitStack() as stack:
        a = stack.enter_context(FakeBackend() if why == "no place" else away(why, threading.Event()))
        z = stack.enter_context(FakeBackend())
        proxy = stack.enter_context(site({"a": a, "z": z}))
        proxy.config["config"]["hold_timeout"] = 1
        if why == "no place":
            stack.enter_context(taken(proxy, "t@a"))
        client = stack.enter_context(proxy.client())
        began = time.monotonic()
        begin(client, "u@a", data=False)
        assert client.silent(0.3)
        proxy.route("u@a", to)
        assert client.reply().code == (250 if to == "z" else 450)
        assert time.monotonic() - began < CONNECT + SOON / 2
        if to == "z":
            client.send(b"RCPT TO:<w@z>\r\nDATA\r\n")
            assert client.reply().code == 250
            assert end(client, 2) == [250, 250]
            assert [each.path for each in z.transactions("slow@x")[0].recipients] == ["u@a", "w@z"]
        client.quit()
        assert not [seen for seen in a.transactions("slow@x") if seen.recipients]
        if to != "z":
            proxy.wait_log("to=<u@a>, backend=-, .*status=deferred")


def test_a_store_that_refuses_everybody_is_left_to_others() -> None:
    """Nobody is to be asked for there again."""
    with (
        FakeBackend(Script(rcpt_by={"no@a": say("550 5.1.1 no")})) as a,
        FakeBackend() as z,
        site({"a": a, "z": z}) as proxy,
        taken(proxy, "t@z") as taker,
        proxy.client() as client,
    ):
        begin(client, "no@a", "v@z")
        assert client.reply().code == 550
        assert deliver(proxy, "other@a")[0] == [250]
        give(taker)
        assert client.reply().code == 250
        assert end(client, 1) == [250]
        client.quit()
        assert len(a.transactions("slow@x")) == 1
        assert deliver(proxy, "u@a", "v@z")[0] == [250, 250]


def test_a_store_that_takes_few_recipients_at_a_time_is_asked_in_full_when_all_are_there() -> None:
    names = [f"u{number}@a" for number in range(5)]
    few = replace(HEALTHY, offer=(*FULL_OFFER, "LIMITS RCPTMAX=2"))
    with FakeBackend(few) as a, FakeBackend() as z, site({"a": a, "z": z}, a={"max_connections": 5}) as proxy:
        assert deliver(proxy, "first@a")[0] == [250]
        with proxy.client() as client:
            with taken(proxy, "t@z") as taker:
                begin(client, names[0], "v@z", *names[1:])
                time.sleep(0.5)  # it waits, and nobody tells
                give(taker)
            assert [client.reply().code for _ in range(6)] == [250] * 6
            assert end(client, 6) == [250] * 6
            client.quit()
        parts = [[each.path for each in seen.recipients] for seen in a.transactions("slow@x") if seen.dotted]
        assert sorted(each for part in parts for each in part) == names and max(map(len, parts)) == 2


def test_who_waits_and_for_what_is_told() -> None:
    """By the status, and in the log of whoever waited in vain."""
    hang = Script(final=(Pause(60),))
    with FakeBackend() as a, FakeBackend(hang) as z:
        config = config_of({"a": a, "z": z}, timeouts={**TIMEOUTS, "connect": 3})
        config["backends"]["z"] = {**z.config, **ONE, "max_connections": 3}
        proxy = ProxyProcess(config, workers=1)
        add_control(proxy)
        with proxy, ExitStack() as stack:
            clients = [stack.enter_context(proxy.client()) for _ in range(4)]
            for client in clients[:3]:
                begin(client, "u@z")
                assert [client.reply().code for _ in range(2)] == [250, 354]
            for client in clients[:2]:
                client.send(b"x\r\n.\r\n")
            begin(clients[3], "u@z")
            wanted = {"its final replies": 2, "the client's message": 1}
            seen: object = None
            deadline = time.monotonic() + SOON
            while seen != (1, wanted):
                assert time.monotonic() < deadline, seen
                [told] = [each for each in Control(proxy).get("/backends")["backends"] if each["name"] == "z"]
                seen = (told["waiting"], told["waits_for"])
            assert clients[3].reply().code == 451
            proxy.wait_log("are in use: they wait, 2 for its final replies, 1 for the client's message")
            z.stop()
