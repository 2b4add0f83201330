# SPDX-License-Identifier: GPL-3.0-or-later
"""XCLIENT: a store is told whose mail it gets, and a connection serves nobody else than the client it was told of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.backend import FakeBackend
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import FULL_OFFER, HEALTHY, Script, say

OFFER = (*FULL_OFFER, "XCLIENT ADDR PORT PROTO HELO LOGIN SESSION TTL TIMEOUT")
STORE = Script(offer=OFFER, other=say("220 once more"))
ALL = b"XFORWARD NAME=mx.example ADDR=192.0.2.9 PORT=4711 PROTO=ESMTP HELO=mx.example IDENT=4fX LOGIN=alice\r\n"
TOLD = "XCLIENT ADDR=192.0.2.9 HELO=mx.example LOGIN=alice PORT=4711 PROTO=ESMTP"


def served(store: FakeBackend, *, tcp: bool = False, **settings: object) -> ProxyProcess:
    config = config_of({"a": store}, idle_timeout=30, **settings)  # type: ignore[arg-type]
    config["backends"]["a"] = {**config["backends"]["a"], "xclient": "yes"}  # type: ignore[dict-item]
    return ProxyProcess(config, tcp=tcp, workers=1)


def deliver(proxy: ProxyProcess, said: bytes, code: int = 250) -> None:
    with proxy.client() as client:
        if said:
            client.send(said)
            assert client.reply().code == 250
        assert client.deliver("s@x", ["u@a", "v@a"]).verdict(0).code == code
        client.quit()


def commands(store: FakeBackend) -> list[list[str]]:
    """Of each connection."""
    return [[line.decode() for line in connection.commands] for connection in store.connections]


def told(store: FakeBackend) -> list[list[str]]:
    return [[line for line in lines if line.startswith("XCLIENT")] for lines in commands(store)]


def test_what_the_client_forwards_is_told_once_before_mail() -> None:
    with FakeBackend(STORE) as store, served(store) as proxy:
        deliver(proxy, ALL)
        deliver(proxy, ALL)
        [lines] = commands(store)
        verbs = [line.partition(" ")[0].upper() for line in lines]
        assert lines[1] == TOLD
        assert lines[0] != lines[2] == "lhlo mx.example"
        assert verbs[:4] == ["LHLO", "XCLIENT", "LHLO", "MAIL"] and verbs.count("MAIL") == 2
        assert verbs.count("XCLIENT") == 1


def test_a_kept_connection_is_for_the_same_client_alone() -> None:
    other = ALL.replace(b"192.0.2.9", b"IPV6:2001:db8::9")
    with FakeBackend(STORE) as store, served(store) as proxy:
        for said in (ALL, other, b"", ALL, other, b""):
            deliver(proxy, said)
        assert told(store) == [[TOLD], [TOLD.replace("192.0.2.9", "IPV6:2001:db8::9")], []]
        assert [len(each) for each in (connection.transactions for connection in store.connections)] == [2, 2, 2]


def test_where_there_is_no_other_place_the_connection_is_replaced() -> None:
    with FakeBackend(STORE) as store:
        proxy = served(store)
        proxy.config["backends"]["a"]["max_connections"] = 1  # type: ignore[index]
        proxy.write_config()
        with proxy:
            for said in (ALL, ALL.replace(b"4711", b"4712"), ALL):
                deliver(proxy, said)
        assert told(store) == [[TOLD], [TOLD.replace("4711", "4712")], [TOLD]]


def test_who_forwards_nothing_is_the_client_itself_over_tcp() -> None:
    with FakeBackend(STORE) as store, served(store, tcp=True) as proxy:
        with proxy.client(source="127.0.7.7") as client:
            port = client.sock.getsockname()[1]
            client.send(ALL)  # it is not trusted
            assert client.reply().code == 500
            assert client.deliver("s@x", ["u@a"]).verdict(0).code == 250
            client.quit()
        assert told(store) == [[f"XCLIENT ADDR=127.0.7.7 PORT={port}"]]


def test_a_message_does_not_inherit_what_was_said_of_the_one_before() -> None:
    with FakeBackend(STORE) as store, served(store) as proxy:
        with proxy.client() as client:
            for said in (ALL, b"XFORWARD PORT=1\r\n", b""):
                if said:
                    client.send(said)
                    assert client.reply().code == 250
                assert client.deliver("s@x", ["u@a"]).verdict(0).code == 250
            client.quit()
        assert told(store) == [[TOLD], ["XCLIENT PORT=1"], []]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"ADDR=[UNAVAILABLE] HELO=[UNAVAILABLE] PORT=[UNAVAILABLE] PROTO=SMTP", ["XCLIENT PROTO=SMTP"]),
        (b"ADDR=1.2.3 PORT=0 HELO=-x_ PROTO=QMQP", []),
        (b"ADDR=192.0.2.1 ADDR=x", []),
        (b"HELO=a+20b ADDR=192.0.2.1", ["XCLIENT ADDR=192.0.2.1"]),
        (b"LOGIN=a+20b+3D", ["XCLIENT LOGIN=a+20b+3D"]),
    ],
)
def test_only_what_a_store_takes_goes_on(said: bytes, expected: list[str]) -> None:
    with FakeBackend(STORE) as store, served(store) as proxy:
        deliver(proxy, b"XFORWARD " + said + b"\r\n")
        assert told(store) == [expected]


def test_a_store_gets_those_that_it_offers() -> None:
    with FakeBackend(replace(STORE, offer=(*FULL_OFFER, "XCLIENT PORT addr"))) as store, served(store) as proxy:
        deliver(proxy, ALL)
        assert told(store) == [["XCLIENT ADDR=192.0.2.9 PORT=4711"]]


def test_a_store_that_does_not_offer_it_is_named_once() -> None:
    with FakeBackend(HEALTHY) as store, served(store) as proxy:
        deliver(proxy, b"")
        assert "XCLIENT" not in proxy.log()
        deliver(proxy, ALL)
        deliver(proxy, ALL.replace(b"4711", b"4712"))
        proxy.wait_log(r"backend a\[.*\] does not offer XCLIENT.*login_trusted_networks")
        assert proxy.log().count("does not offer XCLIENT") == 1
        assert told(store) == [[], [], []]
        store.script = STORE
        deliver(proxy, ALL.replace(b"4711", b"4713"))
        store.script = HEALTHY
        deliver(proxy, ALL.replace(b"4711", b"4714"))
        assert proxy.log().count("does not offer XCLIENT") == 2


@pytest.mark.parametrize(
    "reply", ["550 5.7.14 You are not from trusted IP", "501 5.5.4 what", "250 2.0.0 fine", "421 4.3.2 no"]
)
def test_where_it_is_refused_mail_waits(reply: str) -> None:
    with FakeBackend(replace(STORE, other=say(reply))) as store, served(store) as proxy:
        deliver(proxy, ALL, 451)
        assert not store.transactions()
        deliver(proxy, b"")  # of whom nothing is to be told
        store.script = STORE
        deliver(proxy, ALL)


def test_a_store_that_wants_a_password_gets_it_before_and_after() -> None:
    script = replace(STORE, offer=(*OFFER, "AUTH PLAIN"), credentials=("proxy", "secret"))
    with FakeBackend(script) as store:
        proxy = served(store)
        proxy.config["backends"]["a"].update(user="proxy", password="secret")  # type: ignore[attr-defined]
        proxy.write_config()
        with proxy:
            deliver(proxy, ALL)
        verbs = [line.partition(" ")[0].upper() for line in commands(store)[0]]
        assert verbs[:7] == ["LHLO", "AUTH", "LHLO", "XCLIENT", "LHLO", "AUTH", "LHLO"]


def test_without_the_key_nothing_is_told() -> None:
    with FakeBackend(STORE) as store:
        proxy = served(store)
        del proxy.config["backends"]["a"]["xclient"]  # type: ignore[attr-defined]
        proxy.write_config()
        with proxy:
            deliver(proxy, ALL)
            deliver(proxy, b"")
        assert told(store) == [[]]
