"""Two proxies that send a user to each other, by a wrong entry: the other users of these stores notice nothing."""

from __future__ import annotations

import time

import pytest

from tests.faults.test_pool import codes
from tests.support.backend import FakeBackend
from tests.support.proxy import ProxyProcess, free_tcp_address


@pytest.mark.parametrize("recipients", [1, 3])
def test_mail_that_goes_round_does_not_keep_others_waiting(recipients: int) -> None:
    """It filled all 20 + 20 places for as long as `connect`, and others were deferred after that."""
    addresses = free_tcp_address(), free_tcp_address()
    with FakeBackend() as store:

        def proxy(own: int, good: str) -> ProxyProcess:
            host, port = addresses[1 - own]
            backends = {"other": {"host": host, "port": port}, "store": {**store.config, "idle_timeout": 30}}
            users = {"@x": "other", "good@x": good}
            made = ProxyProcess(
                {"config": {"socket": list(addresses[own])}, "backends": backends, "users": users}, workers=1
            )
            made.address = addresses[own]
            return made

        with proxy(0, "other") as first, proxy(1, "store"), first.client() as round_and_round:
            commands = [f"RCPT TO:<u{number}@x>\r\n" for number in range(recipients)]
            round_and_round.send("".join(["MAIL FROM:<s@x>\r\n", *commands, "DATA\r\n"]).encode())
            began = time.monotonic()
            while time.monotonic() < began + 3:  # while it goes round, and after that
                with first.client() as client:
                    asked = time.monotonic()
                    assert codes(client.deliver("s@x", ["good@x"])) == [250]
                    assert time.monotonic() - asked < 1
                    client.quit()
            assert [round_and_round.reply().code for _ in range(1 + recipients)] == [250] + [451] * recipients
