"""One mailbox does not take all of its store's connections, and no more deliveries than the store takes for one user.

What a real store does meanwhile: a locked mailbox is silence after the dot, and Dovecot 2.4 refuses the 11th RCPT.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from tests.faults.test_pool import codes
from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient, Outcome
from tests.support.conversation import Users
from tests.support.http import add_metrics, fetch, series, value
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import HEALTHY, Await, Close, Script, say

DOT = b"x\r\n.\r\n"
BUSY = "451 4.2.1 Too many deliveries to this mailbox at a time, try again later"
TOO_MANY = "452 4.5.3 Too many recipients"
MOVES = 2.0  # seconds without a reply after which nobody waits


class Lock:
    """A store whose mailbox `alice` is locked until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()
        waits = (Await(self.open), *HEALTHY.final)
        self.script = replace(HEALTHY, final_by={f"alice{tail}@a": waits for tail in ("", "+x", "+y")})


@contextmanager
def site(
    script: Script = HEALTHY, *, users: Users | None = None, workers: int = 1, **keys: object
) -> Iterator[tuple[ProxyProcess, FakeBackend]]:
    """A proxy with one backend, `a`; bob is there, too, and each b@b is at another one."""
    with FakeBackend(script, users=users) as store, FakeBackend() as other:
        config = config_of({"a": store, "b": other}, idle_timeout=30)
        config["backends"]["a"] = {**config["backends"]["a"], **keys}  # type: ignore[dict-item]
        with ProxyProcess(config, workers=workers) as proxy:
            yield proxy, store


def sent(client: LmtpClient, *recipients: str, sender: str = "s@x") -> LmtpClient:
    """The whole message in one write, as Postfix has it up to the 354; nothing is read."""
    lines = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients), "DATA"]
    client.send("".join(line + "\r\n" for line in lines).encode())
    return client


def replies(client: LmtpClient, number: int) -> list[int]:
    return [client.reply().code for _ in range(number)]


@contextmanager
def locked(proxy: ProxyProcess, store: FakeBackend, number: int) -> Iterator[list[LmtpClient]]:
    """So many messages to alice, each past its dot."""
    with ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(number)]
        for client in clients:
            assert client.envelope("s@x", ["alice@a"]).data is not None
            client.send(DOT)
        assert store.wait_for(lambda: sum(each.dot_at is not None for each in store.transactions()) == number)
        yield clients


def timed(proxy: ProxyProcess, *recipients: str) -> tuple[Outcome, float]:
    began = time.monotonic()
    with proxy.client() as client:
        outcome = client.deliver("s@x", list(recipients))
        client.quit()
    return outcome, time.monotonic() - began


# --- a locked mailbox -------------------------------------------------------------------------------------------------


def test_a_locked_mailbox_does_not_stop_its_store() -> None:
    """Four mails to alice, whose mailbox is locked, on a store of four places."""
    lock = Lock()
    with site(lock.script, max_connections=4) as (proxy, store), ExitStack() as stack:
        clients = [sent(stack.enter_context(proxy.client()), "alice@a") for _ in range(4)]
        assert [replies(client, 1) for client in clients] == [[250]] * 4  # to MAIL
        assert store.wait_for(lambda: len(store.transactions()) >= 2)
        outcome, seconds = timed(proxy, "bob@a")
        assert codes(outcome) == [250] and seconds < 1
        heard = [(client.reply().text, client) for client in clients]
        assert Counter(text for text, _ in heard) == {BUSY: 2, "250 2.1.5 recipient ok": 2}
        for text, client in heard:
            if text != BUSY:
                assert replies(client, 1) == [354]
                client.send(DOT)
        lock.open.set()
        assert [replies(client, 1) for text, client in heard if text != BUSY] == [[250]] * 2


def test_a_locked_mailbox_does_not_stop_a_store_that_has_fewer_connections_than_was_thought() -> None:
    """Three, of eight: one mailbox had half of eight, which is all of them."""
    lock = Lock()
    full = Script(greeting=(*say("421 4.3.2 too many connections"), Close()))
    with FakeBackend(lambda index: lock.script if index < 3 else full) as store:
        config = config_of({"a": store}, idle_timeout=30)
        config["backends"]["a"] = {**config["backends"]["a"], "max_connections": 8}  # type: ignore[dict-item]
        with ProxyProcess(config, workers=1) as proxy, ExitStack() as stack:
            bobs = [f"{number}@a" for number in range(20)]
            clients = [sent(stack.enter_context(proxy.client()), bob) for bob in bobs[:3]]
            assert [replies(client, 3) for client in clients] == [[250, 250, 354]] * 3
            found: list[Counter[int]] = []
            sending = threading.Thread(target=lambda: found.append(burst(proxy, 60, 6, bobs)))
            sending.start()
            assert store.wait_for(lambda: len(store.connections) > 3), "nobody was sent away"
            for client in clients:
                client.send(DOT)
                assert replies(client, 1) == [250]
            sending.join()
            assert found == [{250: 60}]
            proxy.wait_log("greets no more than 3 connections at a time, of max_connections=8")
            clients = [sent(stack.enter_context(proxy.client()), "alice@a") for _ in range(3)]
            assert replies(clients[0], 3) == [250, 250, 354]
            clients[0].send(DOT)
            outcome, seconds = timed(proxy, "bob@a")
            assert codes(outcome) == [250] and seconds < 1
            lock.open.set()
            assert replies(clients[0], 1) == [250]


def test_without_progress_it_is_refused_at_once() -> None:
    lock = Lock()
    with site(lock.script, max_per_user=2) as (proxy, store), locked(proxy, store, 2) as clients:
        time.sleep(MOVES)
        outcome, seconds = timed(proxy, "alice@a", "bob@a")
        assert codes(outcome) == [451, 250] and outcome.rcpts[0].text == BUSY and seconds < 1
        proxy.wait_log("451 4.2.1 Too many .*; max_per_user recipients of the mailbox, and no reply for them in time")
        lock.open.set()
        assert [replies(client, 1) for client in clients] == [[250]] * 2
        assert codes(timed(proxy, "alice@a")[0]) == [250]


def test_who_waits_goes_on_with_the_first_reply_in_order() -> None:
    """Each of those that are let go makes room for the one that came first."""
    go = [threading.Event() for _ in range(5)]
    script = [replace(HEALTHY, final=(Await(event), *HEALTHY.final)) for event in go]
    with (
        FakeBackend(lambda index: script[index]) as store,
        ProxyProcess(
            {**config_of({"a": store}), "backends": {"a": {**store.config, "max_per_user": 2}}}, workers=1
        ) as proxy,
        ExitStack() as stack,
    ):
        clients = []
        for number in range(4):
            clients.append(sent(stack.enter_context(proxy.client()), "alice@a", sender=f"{number}@x"))
            if number < 2:
                assert replies(clients[-1], 3) == [250, 250, 354]
                clients[-1].send(DOT)
            else:
                assert clients[-1].reply().code == 250  # to MAIL: it waits
        assert codes_of_next(proxy) == 451, "no more wait than may be delivered"
        for number in (2, 3):
            assert clients[number].silent(0.2)
            go[number - 2].set()
            assert replies(clients[number - 2], 1) == [250]
            assert replies(clients[number], 2) == [250, 354]
            assert [each.sender for each in store.transactions()] == [f"{each}@x" for each in range(number + 1)]
            clients[number].send(DOT)
        for event in go:
            event.set()
        assert [replies(client, 1) for client in clients[2:]] == [[250]] * 2


def codes_of_next(proxy: ProxyProcess) -> int:
    outcome, seconds = timed(proxy, "alice@a")
    assert seconds < 1
    return codes(outcome)[0]


@pytest.mark.parametrize("name", ["alice+x@a", "ALICE@a", "alice+x+y@A.", '"alice"@a'])
def test_all_spellings_are_one_mailbox(name: str) -> None:
    lock = Lock()
    with site(lock.script, max_per_user=1) as (proxy, store), locked(proxy, store, 1):
        time.sleep(MOVES)
        outcome, seconds = timed(proxy, name)
        assert codes(outcome) == [451] and seconds < 1
        lock.open.set()


def test_a_detail_is_another_mailbox_where_it_is_told_so() -> None:
    lock = Lock()
    with FakeBackend(lock.script) as store:
        config = config_of({"a": store}, recipient_delimiter="")
        config["backends"]["a"]["max_per_user"] = 1  # type: ignore[index]
        with ProxyProcess(config, workers=1) as proxy, locked(proxy, store, 1):
            assert codes(timed(proxy, "alice+z@a")[0]) == [250]
            lock.open.set()


# --- within one transaction -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipelined", [True, False])
def test_nobody_waits_for_a_place_of_the_same_transaction(pipelined: bool) -> None:
    with site(max_per_user=2) as (proxy, _), proxy.client() as client:
        began = time.monotonic()
        for _ in range(2):  # and none of them is lost
            recipients = ["alice@a", "bob@a", "alice+x@a", "alice+y@a", "alice@a"]
            outcome = client.deliver("s@x", recipients, pipelined=pipelined)
            assert codes(outcome) == [250, 250, 250, 452, 452]
            assert outcome.rcpts[3].text == TOO_MANY
        assert time.monotonic() - began < 1


def test_a_place_of_whoever_is_refused_is_free_again() -> None:
    script = replace(HEALTHY, rcpt_by={"alice+no@a": say("550 5.1.1 no"), "alice+later@a": say("450 4.2.2 full")})
    with site(script, max_per_user=1) as (proxy, _), proxy.client() as client:
        for _ in range(3):
            for recipient in ("alice+no@a", "alice+later@a"):
                assert codes(client.deliver("s@x", [recipient])) != [452]
            outcome = client.deliver("s@x", ["alice+no@a", "alice@a"], pipelined=False)
            assert codes(outcome) == [550, 250]


@pytest.mark.parametrize("pipelined", [True, False])
def test_who_has_a_place_at_another_mailbox_waits_as_well(pipelined: bool) -> None:
    """Wherever that stands in the order: nobody waits for it."""
    lock = Lock()
    with (
        site(lock.script, max_per_user=1) as (proxy, store),
        locked(proxy, store, 1) as clients,
        proxy.client() as client,
    ):
        if pipelined:
            sent(client, "bob@b", "alice@a")
            assert replies(client, 1) == [250]
        else:
            assert client.command("MAIL FROM:<s@x>").positive
            assert client.command("RCPT TO:<bob@b>").positive
            client.send(b"RCPT TO:<alice@a>\r\nDATA\r\n")
        assert client.silent(0.5)
        lock.open.set()
        assert replies(clients[0], 1) == [250]
        assert replies(client, 3 if pipelined else 2)[-2:] == [250, 354]
        client.send(DOT)
        assert replies(client, 2) == [250, 250]


def test_two_that_wait_for_each_others_mailbox_do_not_both_wait() -> None:
    """They say one command after the other: who waits out of order goes on without."""
    with site(max_per_user=1) as (proxy, _), ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(2)]
        mailboxes = ["alice@a", "bob@a"]
        for client, mailbox in zip(clients, mailboxes, strict=True):
            assert client.command("MAIL FROM:<s@x>").positive
            assert client.command(f"RCPT TO:<{mailbox}>").positive
        began = time.monotonic()
        for client, mailbox in zip(reversed(clients), mailboxes, strict=True):
            client.send(f"RCPT TO:<{mailbox}>\r\nDATA\r\n".encode())
            assert client is clients[0] or client.silent(0.5)
        assert replies(clients[1], 2) == [451, 354]
        clients[1].send(DOT)
        assert replies(clients[1], 1) == [250]
        assert replies(clients[0], 2) == [250, 354]
        clients[0].send(DOT)
        assert replies(clients[0], 2) == [250, 250]
        assert time.monotonic() - began < MOVES


def test_two_of_one_mailbox_that_each_want_another_place_do_not_both_wait() -> None:
    with site(max_per_user=2) as (proxy, _), ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(2)]
        for client in clients:
            assert client.command("MAIL FROM:<s@x>").positive
            assert client.command("RCPT TO:<alice@a>").positive
        began = time.monotonic()
        for client in clients:
            client.send(b"RCPT TO:<alice+x@a>\r\nDATA\r\n")
            assert client is clients[1] or client.silent(0.5)
        ended = {}
        for number in (1, 0):
            ended[number] = replies(clients[number], 2)
            clients[number].send(DOT)
            ended[number] += replies(clients[number], 1 if ended[number][0] == 451 else 2)
        assert ended == {1: [451, 354, 250], 0: [250, 354, 250, 250]}
        assert time.monotonic() - began < MOVES


def test_a_place_at_a_store_is_not_held_while_one_at_a_mailbox_is_waited_for() -> None:
    lock = Lock()
    with (
        site(lock.script, max_per_user=1, max_connections=2) as (proxy, store),
        locked(proxy, store, 1) as clients,
        proxy.client() as client,
    ):
        assert client.command("MAIL FROM:<s@x>").positive
        assert client.command("RCPT TO:<abe@a>").positive
        client.send(b"RCPT TO:<alice@a>\r\nDATA\r\n")
        assert client.silent(0.2)
        outcome, seconds = timed(proxy, "bob@a")
        assert codes(outcome) == [250] and seconds < 1
        lock.open.set()
        assert replies(clients[0], 1) == [250]
        assert replies(client, 2) == [250, 354]
        client.send(DOT)
        assert replies(client, 2) == [250, 250]
        assert codes(timed(proxy, "abe@a")[0]) == [250]
        assert sorted(len(each.recipients) for each in store.transactions() if each.dotted) == [1, 1, 1, 2]


@pytest.mark.parametrize("split", [1, 2])
def test_several_transactions_of_one_message_count_as_well(split: int) -> None:
    with site(max_per_user=2, recipients_per_transaction=split) as (proxy, store), proxy.client() as client:
        for _ in range(3):
            recipients = ["alice@a", "bob@a", "alice+x@a", "alice+y@a", "carol@a"]
            assert codes(client.deliver("s@x", recipients)) == [250, 250, 250, 452, 250]
        assert all(len(each.recipients) <= split for each in store.transactions())
    with site(max_per_user=2, recipients_per_transaction=1, max_connections=2) as (proxy, _), proxy.client() as client:
        for _ in range(3):  # no place for the third: what that one had at their mailbox is free again
            assert codes(client.deliver("s@x", ["alice@a", "bob@a", "carol@a"])) == [250, 250, 452]
            assert codes(client.deliver("s@x", ["carol@a", "carol+x@a"])) == [250, 250]


# --- ends of all kinds ------------------------------------------------------------------------------------------------


def test_a_client_that_vanishes_in_the_wait_leaves_its_turn() -> None:
    lock = Lock()
    with site(lock.script, max_per_user=1) as (proxy, store), locked(proxy, store, 1) as clients:
        gone = sent(proxy.client(), "alice@a", sender="gone@x")
        assert replies(gone, 1) == [250]
        gone.close()
        proxy.wait_log("from=<gone@x>.*status=aborted")
        waits = sent(proxy.client(), "alice@a", "bob@a", sender="waits@x")
        assert replies(waits, 1) == [250]
        lock.open.set()
        assert replies(clients[0], 1) == [250]
        assert replies(waits, 3) == [250, 250, 354]
        waits.close()
        assert codes(timed(proxy, "alice@a")[0]) == [250]
        assert not store.transactions("gone@x")


@pytest.mark.parametrize("how", ["RSET", "close", "reset", "quit"])
def test_a_transaction_that_ends_without_a_dot_gives_its_place_back(how: str) -> None:
    with site(max_per_user=1) as (proxy, _):
        for _ in range(3):
            with proxy.client() as client:
                assert client.envelope("s@x", ["alice@a"], pipelined=False).data is not None
                if how == "quit":
                    client.send(b"half")
                elif how == "RSET":
                    client.send(b"x\r\n.\r\nMAIL FROM:<s@x>\r\nRCPT TO:<alice@a>\r\nRSET\r\n")
                    assert replies(client, 4) == [250] * 4
                if how == "reset":
                    client.reset()
            assert codes(timed(proxy, "alice@a")[0]) == [250]


@pytest.mark.parametrize(
    "script",
    [
        replace(HEALTHY, mail=say("451 4.3.0 no")),
        replace(HEALTHY, data=say("451 4.3.0 no")),
        replace(HEALTHY, rcpt=say("421 4.3.2 bye")),
        replace(HEALTHY, final=say("421 4.3.2 bye")),
        replace(HEALTHY, greeting=say("554 no")),
        replace(HEALTHY, rcpt=say("354 odd")),
    ],
)
def test_a_store_that_fails_gives_it_back(script: Script) -> None:
    with site(script, max_per_user=1) as (proxy, store):
        for _ in range(3):
            assert codes(timed(proxy, "alice@a")[0])[0] // 100 == 4
        store.script = HEALTHY
        assert codes(timed(proxy, "alice@a")[0]) == [250]
        assert "Traceback" not in proxy.log() and BUSY not in proxy.log()


def test_each_reply_of_a_message_makes_room() -> None:
    """Of a message to alice and carol, whose mailbox is locked, alice's part is done."""
    lock = Lock()
    script = replace(HEALTHY, final_by={"carol@a": (Await(lock.open), *HEALTHY.final)})
    with site(script, max_per_user=1) as (proxy, _), proxy.client() as client:
        sent(client, "alice@a", "carol@a")
        assert replies(client, 4) == [250, 250, 250, 354]
        client.send(DOT)
        assert replies(client, 1) == [250]
        outcome, seconds = timed(proxy, "alice@a")
        assert codes(outcome) == [250] and seconds < 1
        lock.open.set()
        assert replies(client, 1) == [250]


# --- routes that change -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["b", "reject", "hold"])
def test_who_waits_while_the_user_is_moved_is_routed_anew(to: str) -> None:
    lock = Lock()
    with FakeBackend(lock.script) as store, FakeBackend() as new:
        config = config_of({"a": store, "b": new}, {"alice@a": "a", "carol@a": "a", "@b": "b"}, hold_timeout=1)
        config["backends"]["a"]["max_per_user"] = 1  # type: ignore[index]
        with ProxyProcess(config, workers=1) as proxy, locked(proxy, store, 1) as clients, proxy.client() as waits:
            sent(waits, "bob@b", "alice@a", "carol@a")
            assert replies(waits, 1) == [250]
            assert waits.silent(0.2)
            proxy.config["users"]["alice@a"] = to
            began = time.monotonic()
            proxy.reload()
            expected = {"b": 250, "reject": 450, "hold": 450}[to]
            assert replies(waits, 4) == [250, expected, 250, 354]
            assert (time.monotonic() - began < 1) == (to != "hold")
            waits.send(DOT)
            assert replies(waits, 3 if to == "b" else 2) == [250] * (3 if to == "b" else 2)
            assert [each.path for seen in store.transactions() for each in seen.recipients] == ["alice@a", "carol@a"]
            lock.open.set()
            assert replies(clients[0], 1) == [250]


def test_a_reload_does_not_change_who_is_first_and_a_higher_limit_lets_them_in() -> None:
    lock = Lock()
    with site(lock.script, max_per_user=2) as (proxy, store), locked(proxy, store, 2), ExitStack() as stack:
        waiting = [sent(stack.enter_context(proxy.client()), "alice@a", sender=f"{number}@x") for number in range(2)]
        assert [replies(client, 1) for client in waiting] == [[250]] * 2
        proxy.reload()
        assert all(client.silent(0.1) for client in waiting)
        proxy.config["backends"]["a"] = {**store.config, "max_per_user": 3}
        proxy.reload()
        assert replies(waiting[0], 2) == [250, 354]
        assert waiting[1].silent(0.2)
        proxy.config["backends"]["a"] = {**store.config, "max_per_user": 4}
        proxy.reload()
        assert replies(waiting[1], 2) == [250, 354]
        lock.open.set()


def test_who_is_held_back_and_who_is_refused_is_counted() -> None:
    lock = Lock()
    with FakeBackend(lock.script) as store:
        config = config_of({"a": store})
        config["backends"]["a"]["max_per_user"] = 1  # type: ignore[index]
        proxy = ProxyProcess(config, workers=1)
        address = add_metrics(proxy)
        with proxy, locked(proxy, store, 1):
            assert codes(timed(proxy, "alice@a", "bob@a")[0]) == [451, 250]
            time.sleep(MOVES)
            assert codes(timed(proxy, "alice@a")[0]) == [451]
            found = series(fetch(address, "/metrics").text)
            assert value(found, "backend_held_back_recipients_total", backend="a") == 1
            assert value(found, "backend_mailbox_busy_recipients_total", backend="a") == 2
            assert value(found, "recipients_total", backend="a", outcome="deferred") == 2
            lock.open.set()


@pytest.mark.parametrize("changed", [{}, {"idle_timeout": 7}], ids=["nothing", "its backend"])
def test_who_waited_while_something_was_reloaded_has_a_place_like_others(changed: dict[str, object]) -> None:
    """Behind the mailbox a place at another store is waited for, so that alice's store is asked before."""
    lock = Lock()
    script = replace(lock.script, rcpt_by={"alice+no@a": say("550 5.1.1 no")})
    with FakeBackend(script) as store, FakeBackend() as other:
        config = config_of({"a": store, "b": other}, {"alice@a": "a", "@b": "b"})
        config["backends"]["a"] = {**config["backends"]["a"], "max_per_user": 1}  # type: ignore[dict-item]
        config["backends"]["b"] = {**config["backends"]["b"], "max_connections": 1}  # type: ignore[dict-item]
        with (
            ProxyProcess(config, workers=1) as proxy,
            locked(proxy, store, 1) as clients,
            proxy.client() as taker,
            proxy.client() as waits,
        ):
            assert taker.envelope("s@x", ["t@b"]).data is not None
            sent(waits, "alice+no@a", "v@b")
            assert replies(waits, 1) == [250]
            assert waits.silent(0.2)
            proxy.config["backends"]["a"].update(changed)  # type: ignore[attr-defined]
            proxy.reload()
            lock.open.set()
            assert replies(clients[0], 1) == [250]
            assert replies(waits, 1) == [550]
            taker.send(DOT)
            assert replies(taker, 1) == [250]
            assert replies(waits, 2) == [250, 354]
            waits.send(DOT)
            assert replies(waits, 1) == [250]
            for _ in range(2):
                assert codes(timed(proxy, "alice@a")[0]) == [250]


# --- as Dovecot 2.4 has it --------------------------------------------------------------------------------------------


def burst(proxy: ProxyProcess, messages: int, concurrency: int, recipients: list[str]) -> Counter[int]:
    """So many messages by so many clients; the codes."""
    numbers = iter(range(messages))
    found: Counter[int] = Counter()
    lock = threading.Lock()

    def send() -> None:
        with proxy.client() as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    break
                outcome = client.deliver("s@x", [recipients[number % len(recipients)]])
                with lock:
                    found.update(codes(outcome))
            client.quit()

    threads = [threading.Thread(target=send) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_burst_to_one_user_defers_nothing() -> None:
    users = Users(10, seconds=0.005)
    with site(users=users) as (proxy, _):
        seconds: list[float] = []
        done = threading.Event()

        def others() -> None:
            while not done.is_set():
                outcome, took = timed(proxy, "bob@a")
                assert codes(outcome) == [250]
                seconds.append(took)

        thread = threading.Thread(target=others)
        thread.start()
        assert burst(proxy, 400, 20, ["alice@a", "alice+x@a"]) == {250: 400}
        done.set()
        thread.join()
        assert users.most["alice@a"] == 10 and not users.refused
        assert sorted(seconds)[len(seconds) // 2] < 1
        assert "fewer recipients of one user" not in proxy.log()


def test_a_store_that_takes_fewer_teaches_it() -> None:
    users = Users(4, seconds=0.005)
    with site(users=users, max_per_user=20) as (proxy, _):
        first = burst(proxy, 100, 12, ["alice@a"])
        assert users.refused > 0 and first[250] + first[451] == 100
        refused = users.refused
        assert burst(proxy, 200, 8, ["alice@a", "alice+x@a"]) == {250: 200}
        assert users.refused == refused
        assert proxy.log().count("takes fewer recipients of one user at a time than max_per_user=20") == 1
        assert "alice" not in proxy.log().split("takes fewer recipients")[1].split("\n")[0]


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_what_teaches_it_is_asked_again_when_the_mailbox_has_moved(pipelined: bool, used: bool) -> None:
    """Also of a message in which somebody was accepted before, and on connections that were used before."""
    users = Users(4)
    with site(users=users, max_per_user=20) as (proxy, store), ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(7)]
        if used:
            for number, client in enumerate(clients):
                assert client.envelope("s@x", [f"{number}@a"]).data is not None
            for client in clients:
                client.send(DOT)
                assert replies(client, 1) == [250]
        opened = len(store.connections)
        for number, client in enumerate(clients):
            if number < 4:
                assert client.envelope("s@x", ["alice@a"]).data is not None
            elif pipelined:
                sent(client, "alice@a")
                assert replies(client, 1) == [250]
            else:
                assert client.command("MAIL FROM:<s@x>").positive
                assert client.command("RCPT TO:<bob@a>").positive
                client.send(b"RCPT TO:<alice+x@a>\r\n")
            assert number < 4 or store.wait_for(lambda number=number: users.refused == number - 3)  # type: ignore[misc]
        assert all(client.silent(0.1) for client in clients[4:])
        for number in range(7):
            clients[number].send(DOT)
            assert replies(clients[number], 1) == [250]
            if number < 3:
                waited = clients[number + 4]
                assert replies(waited, 1) == [250], "in order"
                if not pipelined:
                    waited.send(b"DATA\r\n")
                assert replies(waited, 1) == [354]
        if not pipelined:
            assert [replies(client, 1) for client in clients[4:]] == [[250]] * 3
        assert (users.most["alice@a"], users.refused) == (4, 3)
        assert not used or not pipelined or len(store.connections) <= opened + 3
        assert " status=deferred" not in proxy.log()


def test_a_user_for_whom_the_store_has_deliveries_from_elsewhere_is_deferred() -> None:
    """As soon as it is asked again in vain."""
    script = replace(HEALTHY, rcpt=say("451 4.3.0 <alice@a> Too many concurrent deliveries for user"))
    with FakeBackend(script) as store:
        proxy = ProxyProcess(config_of({"a": store}), workers=1)
        address = add_metrics(proxy)
        with proxy:
            outcome, seconds = timed(proxy, "alice@a")
            assert codes(outcome) == [451] and seconds < MOVES
            assert len([each for seen in store.transactions() for each in seen.recipients]) == 2
            found = series(fetch(address, "/metrics").text)
            assert value(found, "recipients_total", backend="a", outcome="deferred") == 1
