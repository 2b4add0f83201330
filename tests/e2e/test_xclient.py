# SPDX-License-Identifier: GPL-3.0-or-later
"""Dovecot is told whose mail it gets: its Received header names that client, and not the proxy."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.proxy import ProxyProcess

from .requirements import missing_for_servers
from .stores import Dovecot

Made = Callable[[str], Dovecot]
FORWARDED = b"XFORWARD NAME=mx.example ADDR=%b PORT=4711 PROTO=ESMTP HELO=mx.example IDENT=4fX SOURCE=REMOTE\r\n"


@pytest.fixture
def made() -> Iterator[Made]:
    """Starts a Dovecot with something more in its configuration."""
    if reason := missing_for_servers():
        pytest.skip(reason)
    with ExitStack() as cleanup:
        cleanup.callback(os.umask, os.umask(0o022))

        def make(more: str) -> Dovecot:
            directory = Path(tempfile.mkdtemp(prefix="lpx-", dir="/tmp"))
            cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
            directory.chmod(0o755)
            store = Dovecot(directory)
            with (directory / "dovecot.conf").open("a") as file:
                file.write(more)
            store.add_users(["alice", "bob"])
            cleanup.callback(store.stop)
            store.start()
            cleanup.callback(lambda: print(store.log()))
            return store

        yield make


def proxy_of(store: Dovecot, port: int, **keys: object) -> ProxyProcess:
    backend = {"host": "127.0.0.1", "port": port, "xclient": "yes", **keys}
    own = {"ignoreDomain": "yes", "fallback_backend": "new"}
    return ProxyProcess({"config": own, "backends": {"new": backend}, "users": {}}, workers=1)


def deliver(proxy: ProxyProcess, said: bytes, ident: str) -> None:
    with proxy.client() as client:
        if said:
            client.send(said)
            assert client.reply().code == 250
        outcome = client.deliver("s@x.test", ["alice@x.test", "bob@x.test"], f"X-E2E-Id: {ident}\r\n\r\nx\r\n".encode())
        assert [outcome.verdict(number).code for number in range(2)] == [250, 250]
        client.quit()


def received(store: Dovecot, user: str, ident: str) -> str:
    """The client as the store's own header of that message has it."""
    [text] = [text for text in store.messages(user) if f"X-E2E-Id: {ident}\r\n".encode() in text]
    match = re.search(rb"(?m)^Received: from (.*(?:\r\n[ \t].*)*)", text)
    assert match is not None, text
    return re.sub(r"\s+", " ", match[1].decode("ascii"))


@pytest.mark.parametrize("tls", ["no", "starttls", "implicit"])
def test_the_store_takes_the_client_for_its_own(made: Made, tls: str) -> None:
    store = made("login_trusted_networks = 127.0.0.0/8\n")
    keys: dict[str, object] = {} if tls == "no" else {"tls": tls, "tls_ca": store.authority.path}
    with proxy_of(store, store.lmtps_port if tls == "implicit" else store.lmtp_port, **keys) as proxy:
        told = {"one": b"192.0.2.9", "other": b"IPV6:2001:db8::9", "again": b"192.0.2.9"}
        for ident, address in told.items():
            deliver(proxy, FORWARDED % address, ident)
        deliver(proxy, b"", "local")
        assert "does not offer" not in proxy.log()
    for user in ("alice", "bob"):
        assert "mx.example ([2001:db8::9])" in received(store, user, "other")
        assert "mx.example ([192.0.2.9])" in received(store, user, "one")
        assert "mx.example ([192.0.2.9])" in received(store, user, "again")
        assert "192.0.2.9" not in received(store, user, "local")
        assert "127.0.0.1" in received(store, user, "local")


def test_where_the_proxy_is_not_trusted_mail_comes_all_the_same(made: Made) -> None:
    store = made("")
    with proxy_of(store, store.lmtp_port) as proxy:
        deliver(proxy, FORWARDED % b"192.0.2.9", "untold")
        proxy.wait_log("does not offer XCLIENT")
    assert "192.0.2.9" not in received(store, "alice", "untold")
