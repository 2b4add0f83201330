# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Postfix in front across TLS: `lmtp_tls_security_level = secure` and a client certificate (docs/tls.md)."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.certificates import Authority

from .conftest import Stack, Start
from .cutover import Cutover, deliver_the_rest
from .flow import Flow
from .mail import check_copies, message, read_back, submit
from .postfix import Postfix
from .process import free_port, wait_until
from .test_cutover import check_migration

CLIENT = "mx1.test"


@dataclass(frozen=True)
class Secure:
    """The stack with such a Postfix in front, and what the proxy needs for it."""

    stack: Stack
    authority: Authority
    port: int

    def tls(self, **keys: object) -> dict[str, object]:
        """`config` of the proxy, as far as it is about clients."""
        ours = self.authority.signed["proxy.test"]
        tls = {"cert": ours.certificate, "key": ours.key, "ca": self.authority.path, "required": True, **keys}
        return {"socket": ["127.0.0.1", self.port], "tls": tls}


@pytest.fixture(scope="module")
def secure_postfix(
    servers: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Postfix, Authority, int]]:
    directory: Path = servers.proxy_socket.with_name("secure")
    directory.mkdir()
    authority = Authority(tmp_path_factory.mktemp("ca"))
    authority.sign("proxy.test")
    client = authority.sign(CLIENT, client=True)
    shared = directory / "ca.pem"  # where the user postfix may read it
    shared.write_bytes(Path(authority.path).read_bytes())
    port = free_port()
    postfix = Postfix(directory, f"inet:[127.0.0.1]:{port}", {})
    with (directory / "etc/main.cf").open("a", encoding="utf-8") as file:
        file.write(
            "lmtp_tls_security_level = secure\nlmtp_tls_secure_cert_match = proxy.test\nlmtp_tls_loglevel = 1\n"
            f"lmtp_tls_CAfile = {shared}\n"
            f"lmtp_tls_cert_file = {client.certificate}\nlmtp_tls_key_file = {client.key}\n"
        )
    try:
        postfix.start()
        yield postfix, authority, port
    finally:
        postfix.stop()


@pytest.fixture
def secure(stack: Stack, secure_postfix: tuple[Postfix, Authority, int]) -> Iterator[Secure]:
    postfix, authority, port = secure_postfix
    postfix.begin_log()
    yield Secure(replace(stack, postfix=postfix), authority, port)
    print("The secure Postfix's log:", *postfix.log().splitlines()[-100:], sep="\n")
    if postfix.queue_length() > 0:
        postfix.wipe()


def test_delivers(secure: Secure, start_proxy: Start) -> None:
    stack = secure.stack
    users = stack.users(2)
    proxy = start_proxy(stack.config({users[0]: "old", users[1]: "new"}, **secure.tls(allow_subjects=[CLIENT])))
    long = b"8 bit: \xe9\r\n.\r\n..\r\n" + b"x" * 70 + b"\r\n"
    messages = [message(f"tls-in-{number}", users, long * (1 + 3000 * (number == 2))) for number in range(5)]

    queue_ids = submit(stack.postfix, messages)

    stack.postfix.wait_removed(queue_ids.values(), 40)
    check_copies(messages, read_back(stack.stores, users))
    assert {attempt.status for attempt in stack.postfix.attempts(queue_ids.values())} == {"sent"}
    assert stack.postfix.lines(r"Verified TLS connection established to 127\.0\.0\.1")
    assert f"CN={CLIENT}" in proxy.log()


@pytest.mark.parametrize("wrong", ["subject", "certificate", "none"])
def test_mail_waits_and_does_not_bounce(secure: Secure, start_proxy: Start, tmp_path: Path, wrong: str) -> None:
    """A client that may not deliver, one that meets somebody else's certificate, and one that meets no TLS."""
    stack = secure.stack
    [user] = stack.users(1)
    config = secure.tls(allow_subjects=["mx2.test" if wrong == "subject" else CLIENT])
    tls = config["tls"]
    assert isinstance(tls, dict)
    if wrong == "certificate":
        other = Authority(tmp_path / "other", "Other CA").sign("proxy.test")
        config["tls"] = {**tls, "cert": other.certificate, "key": other.key}
    elif wrong == "none":
        del config["tls"]
    proxy = start_proxy(stack.config({user: "new"}, **config))
    item = message(f"tls-in-wrong-{wrong}", [user])

    queue_ids = submit(stack.postfix, [item])

    wait_until(lambda: stack.postfix.attempts(queue_ids.values()), 30, stack.postfix.log)
    first = stack.postfix.attempts(queue_ids.values())[0]
    said = {"subject": "421 4.7.1", "certificate": "not verified", "none": "TLS is required, but was not offered"}
    assert first.status == "deferred" and said[wrong] in first.text, first

    proxy.config["config"].update(secure.tls(allow_subjects=[CLIENT]))
    assert "active" in proxy.reload()
    stack.postfix.flush()
    stack.postfix.wait_removed(queue_ids.values(), 30)
    check_copies([item], read_back(stack.stores, [user]))


@pytest.mark.timeout(300)
def test_users_move_under_a_flow_in_tls(secure: Secure, start_proxy: Start) -> None:
    stack = secure.stack
    users = stack.users(8)
    proxy = start_proxy(stack.config(dict.fromkeys(users, "old"), **secure.tls(allow_subjects=[CLIENT])))
    flow = Flow(stack.postfix, "tls-in", users, rate=15, large_every=20, large_size=2**20)
    cutover = Cutover(stack, proxy)

    with flow.running():
        time.sleep(1)
        cutover.copy(users[:6])
        for number, user in enumerate(users[:6]):
            cutover.move(user, "hold" if number % 2 else "reject")
        time.sleep(1)
    deliver_the_rest(stack)

    check_migration(stack, flow, cutover)
