"""TLS to a store: who it is, what is said before, each way in which it fails, and mail where it does not."""

from __future__ import annotations

import re
import shutil
import ssl
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.certificates import DAY, Authority, Signed
from tests.support.client import LmtpClient
from tests.support.ctl import ctl
from tests.support.http import fetch, series, value
from tests.support.proxy import ProxyProcess, free_tcp_address
from tests.support.script import FULL_OFFER, Close, Script, say
from tests.support.tls_front import Manners, TlsFront

PASSWORD = "secret word"
ANSWER = Manners().answer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    directory = tmp_path_factory.mktemp("ca")
    directory.chmod(0o755)
    return Authority(directory)


@pytest.fixture(scope="module")
def store(authority: Authority) -> Signed:
    return authority.sign("127.0.0.1", file="store")


@contextmanager
def standing(front: TlsFront, authority: Authority, **keys: object) -> Iterator[tuple[ProxyProcess, LmtpClient]]:
    """A proxy in front of it that trusts the authority, and a client. A key that is None is left out."""
    backend = {**front.config, "tls_ca": authority.path, **keys}
    backend = {key: value for key, value in backend.items() if value is not None}
    config: Mapping[str, Mapping[str, object]] = {"config": {}, "backends": {"a": backend}, "users": {"@a": "a"}}
    with ProxyProcess(config) as proxy, proxy.client() as client:
        yield proxy, client
        client.quit()
        assert PASSWORD not in proxy.log()


def verdict(client: LmtpClient, body: bytes = b"Subject: x\r\n\r\nx\r\n") -> str:
    return client.deliver("s@x", ["u@a"], body).verdict(0).text


# --- mail ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("starttls", [True, False], ids=["starttls", "implicit"])
@pytest.mark.parametrize("cut", [65536, 1], ids=["", "octet-by-octet"])
@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_mail_arrives_as_it_is(
    authority: Authority, store: Signed, starttls: bool, cut: int, latest: ssl.TLSVersion
) -> None:
    body = b"Subject: x\r\n\r\n" + bytes(range(33, 127)) * 300 + b"\r\n..\r\n"
    context = store.server(maximum_version=latest)
    with FakeBackend() as backend, TlsFront(backend, context, Manners(starttls=starttls, cut=cut)) as front:
        with standing(front, authority) as (_, client):
            assert client.deliver("s@x", ["u@a"], body).verdict(0).text.startswith("250 2.0.0 stored")
        [transaction] = backend.transactions()
        assert transaction.body is not None and transaction.body.bytes == body
        assert front.connections[0].version == {ssl.TLSVersion.TLSv1_2: "TLSv1.2"}.get(latest, "TLSv1.3")
        assert [line.split()[0] for line in front.connections[0].plain] == [b"LHLO", b"STARTTLS"] * starttls


def test_a_password_goes_in_tls_only_and_what_was_offered_before_does_not_count(
    authority: Authority, store: Signed
) -> None:
    script = Script(offer=(*FULL_OFFER, "AUTH PLAIN"), credentials=("proxy", PASSWORD))
    plain = Manners(offer=b"250-fake.test\r\n250-STARTTLS\r\n250-XPLAIN\r\n250 AUTH LOGIN CRAM-MD5\r\n")
    with FakeBackend(script) as backend, TlsFront(backend, store.server(), plain) as front:
        with standing(front, authority, user="proxy", password=PASSWORD) as (_, client):
            client.send(b"MAIL FROM:<s@x> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<u@a>\r\nDATA\r\n")
            assert [client.reply().code for _ in range(3)] == [250, 250, 354]
            client.send(b"x\r\n.\r\n")
            assert client.reply().positive
        (connection,) = backend.connections
        assert [line.split()[0].upper() for line in connection.commands[:4]] == [b"LHLO", b"AUTH", b"LHLO", b"MAIL"]
        assert b"PLAIN" in connection.auth_lines[0]
        assert connection.transactions[0].line.endswith(b"SIZE=100 BODY=8BITMIME")
        assert front.connections[0].plain[1:] == [b"STARTTLS"]


def test_a_session_is_resumed(authority: Authority, store: Signed) -> None:
    with FakeBackend() as backend, TlsFront(backend, store.server()) as front:
        with standing(front, authority) as (_, client):
            for _ in range(3):
                assert verdict(client).startswith("250")
                front.wait_over(1)
        assert [seen.resumed for seen in front.connections] == [False, True, True]


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_the_store_may_want_our_certificate(authority: Authority, store: Signed, latest: ssl.TLSVersion) -> None:
    ours = authority.sign("proxy", file="proxy", client=True)
    context = store.server(verify_mode=ssl.CERT_REQUIRED, maximum_version=latest)
    context.load_verify_locations(authority.path)
    with FakeBackend() as backend, TlsFront(backend, context) as front:
        with standing(front, authority) as (proxy, client):
            assert verdict(client).startswith("451 4.7.0")
            assert re.search(r"backend a\S+ TLS.*(certificate required|handshake failure)", proxy.log())
        assert not backend.transactions()
        with standing(front, authority, tls_cert=ours.certificate, tls_key=ours.key) as (_, client):
            assert verdict(client).startswith("250")
        assert front.connections[-1].peer is not None


@pytest.mark.parametrize("which", ["digest", "key_digest"])
def test_a_certificate_that_nobody_has_signed_is_known_by_its_digest(
    tmp_path: Path, authority: Authority, which: str
) -> None:
    alone = authority.self_signed("alone", "anything")
    colons = ":".join(re.findall("..", getattr(alone, which).upper()))
    with (
        FakeBackend() as backend,
        TlsFront(backend, alone.server()) as front,
        standing(front, authority, tls_ca=None, tls_fingerprint=colons) as (_, client),
    ):
        assert verdict(client).startswith("250") and verdict(client).startswith("250")


def test_unverified_is_written_out_and_warned_of(authority: Authority) -> None:
    alone = authority.self_signed("alone", "anything")
    with (
        FakeBackend() as backend,
        TlsFront(backend, alone.server()) as front,
        standing(front, authority, tls_ca=None, tls_verify=False) as (proxy, client),
    ):
        assert re.search(r"WARNING backend a\S+ tls_verify is no", proxy.log())
        assert verdict(client).startswith("250")


def test_the_files_are_read_again_with_a_reload(tmp_path: Path, authority: Authority, store: Signed) -> None:
    tmp_path.chmod(0o755)
    other = Authority(tmp_path / "other", "Other CA")
    trusted = tmp_path / "ca.pem"
    shutil.copy(other.path, trusted)
    with (
        FakeBackend() as backend,
        TlsFront(backend, store.server()) as front,
        standing(front, authority, tls_ca=str(trusted)) as (proxy, client),
    ):
        assert verdict(client).startswith("451 4.7.0")
        shutil.copy(authority.path, trusted)
        proxy.reload()
        assert verdict(client).startswith("250")
        trusted.write_text("nothing")
        proxy.reload()
        assert re.search(r"backends\.a\.tls_ca: \S+/ca\.pem holds no certificate", proxy.log())
        assert verdict(client).startswith("250"), "and nothing has changed"


def test_what_is_spoken_is_told_and_when_the_certificate_ends(authority: Authority) -> None:
    soon = authority.sign("127.0.0.1", file="soon", ends=9.5)
    with FakeBackend() as backend, TlsFront(backend, soon.server()) as front:
        control = {"socket": f"{front.behind.directory}/control"}
        address = free_tcp_address()
        config: Mapping[str, Mapping[str, object]] = {
            "config": {"control": control, "metrics": list(address)},
            "backends": {"a": {**front.config, "tls_ca": authority.path}},
            "users": {"@a": "a"},
        }
        with ProxyProcess(config):
            probed = ctl("--socket", control["socket"], "probe")
            assert (probed.status, probed.err) == (0, "")
            text = " ".join(probed.out.split())
            assert "TLSv1.3, TLS_AES_256_GCM_SHA384; certificate of CN=127.0.0.1, issued by O=lmtp-proxy tests," in text
            assert "(9.5 days left)" in text and f"SHA-256 of it {soon.digest}" in text and soon.key_digest in text
            told = " ".join(ctl("--socket", control["socket"], "backends").out.split())
            assert "TLSv1.3" in told and "(9.5 days left)" in told
            seconds = value(
                series(fetch(address, "/metrics").text), "backend_certificate_expiry_timestamp_seconds", backend="a"
            )
            assert abs(seconds - time.time() - 9.5 * DAY) < 120


def test_a_refused_certificate_is_told_so_that_its_digest_can_be_compared(authority: Authority) -> None:
    alone = authority.self_signed("alone", "anything")
    with FakeBackend() as backend, TlsFront(backend, alone.server()) as front:
        control = f"{front.behind.directory}/control"
        config: Mapping[str, Mapping[str, object]] = {
            "config": {"control": {"socket": control}},
            "backends": {"a": {**front.config, "tls_ca": authority.path}},
            "users": {"@a": "a"},
        }
        with ProxyProcess(config):
            probed = ctl("--socket", control, "probe")
            assert probed.status == 1
            text = " ".join(probed.out.split())
            assert "FAILED" in text and "self-signed certificate" in text
            assert f"SHA-256 of it {alone.digest}, of its public key {alone.key_digest}" in text


# --- it fails closed -------------------------------------------------------------------------------------------------


def denied(front: TlsFront, authority: Authority, **keys: object) -> str:
    """What the log says of it. Nobody but the proxy has heard of any mail, and of no password."""
    script = front.behind
    with standing(front, authority, user="proxy", password=PASSWORD, **keys) as (proxy, client):
        assert verdict(client).startswith("451 4.7.0"), "deferred"
        log = proxy.log()
    assert not script.transactions() and not any(connection.commands for connection in script.connections)
    for seen in front.connections:
        assert seen.inside == b"" and {line.split()[0] for line in seen.plain} <= {b"LHLO", b"STARTTLS"}
    assert re.search(r"(?im)^.*error.*backend a\[", log), log
    return log


@pytest.mark.parametrize("starttls", [True, False], ids=["starttls", "implicit"])
@pytest.mark.parametrize(
    "how, said",
    [
        ("name", r"certificate is not valid for '127\.0\.0\.1'"),
        ("expired", "certificate has expired"),
        ("early", "certificate is not yet valid"),
        ("unknown", "self-signed certificate|unable to get local issuer"),
    ],
)
def test_another_certificate(tmp_path: Path, authority: Authority, starttls: bool, how: str, said: str) -> None:
    tmp_path.chmod(0o755)
    signed = {
        "name": lambda: authority.sign("elsewhere.test"),
        "expired": lambda: authority.sign("127.0.0.1", file="expired", begins=-20, ends=-1),
        "early": lambda: authority.sign("127.0.0.1", file="early", begins=2),
        "unknown": lambda: Authority(tmp_path / "x", "Other CA").sign("127.0.0.1"),
    }[how]()
    with FakeBackend() as backend, TlsFront(backend, signed.server(), Manners(starttls=starttls)) as front:
        log = denied(front, authority)
    assert re.search(said, log), log
    assert re.search(r"issued by O=lmtp-proxy tests, CN=\w+ CA, valid from 20\S+Z until 20\S+Z", log), log


def test_another_digest(authority: Authority, store: Signed) -> None:
    with FakeBackend() as backend, TlsFront(backend, store.server()) as front:
        log = denied(front, authority, tls_ca=None, tls_fingerprint="ab" * 32)
    assert store.digest in log and store.key_digest in log


@pytest.mark.parametrize(
    "manners, said",
    [
        (Manners(offer=b"250-fake.test\r\n250 PIPELINING\r\n"), "does not offer STARTTLS"),
        (Manners(answer=b"454 4.7.0 not now\r\n"), "in reply to STARTTLS: 454"),
        (Manners(answer=b"502 5.5.1 what\r\n"), "in reply to STARTTLS: 502"),
        (Manners(answer=b"250 2.0.0 ok\r\n"), "in reply to STARTTLS: 250"),
        (Manners(answer=ANSWER + b"250 2.0.0 injected\r\n"), "more than its reply to STARTTLS"),
        (Manners(answer=ANSWER + b"2"), "more than its reply to STARTTLS"),
        (Manners(offer=Manners().offer + b"220 2.0.0 go\r\n"), "more than its reply to LHLO"),
    ],
)
def test_starttls_that_is_none(authority: Authority, store: Signed, manners: Manners, said: str) -> None:
    with FakeBackend() as backend, TlsFront(backend, store.server(), manners) as front:
        assert said in denied(front, authority)


def test_a_store_without_tls_at_a_port_where_it_should_be(authority: Authority) -> None:
    with FakeBackend(transport="tcp") as backend:
        keys = {**backend.config, "tls": "implicit", "tls_ca": authority.path}
        config: Mapping[str, Mapping[str, object]] = {"config": {}, "backends": {"a": keys}, "users": {"@a": "a"}}
        with ProxyProcess(config) as proxy, proxy.client() as client:
            assert verdict(client).startswith("451 4.7.0")
            assert "wrong version number; it does not speak TLS at once: tls: starttls?" in proxy.log()
            client.quit()


def test_old_tls_is_none(authority: Authority, store: Signed) -> None:
    context = store.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with FakeBackend() as backend, TlsFront(backend, context) as front:
        denied(front, authority)


# --- as without TLS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vanish", [0, 1, 100, 1000])
@pytest.mark.parametrize("starttls", [True, False], ids=["starttls", "implicit"])
def test_who_vanishes_amid_the_handshake_was_not_there(
    authority: Authority, store: Signed, starttls: bool, vanish: int
) -> None:
    manners = Manners(starttls=starttls, vanish=vanish)
    with (
        FakeBackend() as backend,
        TlsFront(backend, store.server(), manners) as front,
        standing(front, authority) as (_, client),
    ):
        assert verdict(client).startswith("451 4.4.2")
        front.manners = replace(manners, vanish=None)
        assert verdict(client).startswith("250")


@pytest.mark.parametrize("starttls", [True, False], ids=["starttls", "implicit"])
def test_silence_amid_the_handshake_ends_with_greeting(authority: Authority, store: Signed, starttls: bool) -> None:
    with (
        FakeBackend() as backend,
        TlsFront(backend, store.server(), Manners(starttls=starttls, silent=True)) as front,
        standing(front, authority, timeouts={"greeting": 0.4}) as (_, client),
    ):
        assert verdict(client).startswith("451 4.4.2")


@pytest.mark.parametrize("truncate", [True, False], ids=["truncated", "close_notify"])
def test_the_end_behind_the_dot_leaves_it_open(authority: Authority, store: Signed, truncate: bool) -> None:
    with (
        FakeBackend(Script(final=(Close(),))) as backend,
        TlsFront(backend, store.server(), Manners(truncate=truncate)) as front,
        standing(front, authority) as (proxy, client),
    ):
        assert verdict(client).startswith("451 4.4.2")
        proxy.wait_log("may be delivered")


@pytest.mark.parametrize("truncate", [True, False], ids=["truncated", "close_notify"])
def test_the_end_of_a_kept_connection_costs_nothing(authority: Authority, store: Signed, truncate: bool) -> None:
    with (
        FakeBackend(Script(after_finals=(Close(),))) as backend,
        TlsFront(backend, store.server(), Manners(truncate=truncate)) as front,
        standing(front, authority, idle_timeout=30) as (_, client),
    ):
        for _ in range(3):
            assert verdict(client).startswith("250")


def test_a_verdict_amid_the_message_is_heard(authority: Authority, store: Signed) -> None:
    script = Script(data=say("354 go", "452 4.3.1 full"))
    with FakeBackend(script) as backend, TlsFront(backend, store.server()) as front:
        with standing(front, authority) as (_, client):
            assert verdict(client, b"x" * 70 + b"\r\n").startswith(("451", "452"))
        assert not any(transaction.dotted for transaction in backend.transactions())
