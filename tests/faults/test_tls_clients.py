"""TLS from clients: mail in it, who may deliver, what is said before it, and each way in which it fails."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.certificates import Authority, Signed
from tests.support.client import Disconnected, LmtpClient
from tests.support.ctl import ctl
from tests.support.http import fetch, series, value
from tests.support.proxy import ProxyProcess, config_of, free_tcp_address

BODY = b"Subject: x\r\n\r\nx\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    directory = tmp_path_factory.mktemp("ca")
    directory.chmod(0o755)
    return Authority(directory)


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Signed:
    return authority.sign("127.0.0.1", file="proxy")


@contextmanager
def standing(
    ours: Signed, config: Mapping[str, object] | None = None, **tls: object
) -> Iterator[tuple[ProxyProcess, FakeBackend]]:
    keys = {"cert": ours.certificate, "key": ours.key, **tls}
    with FakeBackend() as backend:
        whole = config_of({"a": backend})
        whole["config"] |= {"tls": keys, **(config or {})}
        with ProxyProcess(whole, tcp=True) as proxy:
            yield proxy, backend


def context_of(authority: Authority, certificate: Signed | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.path)
    if certificate is not None:
        context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def plain(proxy: ProxyProcess) -> LmtpClient:
    return LmtpClient(proxy.address)


def wrap(client: LmtpClient, context: ssl.SSLContext) -> None:
    client.sock = context.wrap_socket(client.sock, server_hostname="127.0.0.1")


def starttls(proxy: ProxyProcess, context: ssl.SSLContext) -> LmtpClient:
    """In TLS, before LHLO."""
    client = plain(proxy)
    assert client.reply().code == 220
    client.send(b"LHLO c\r\n")
    assert b"STARTTLS" in client.reply().lines
    client.send(b"STARTTLS\r\n")
    assert client.reply().text.startswith("220 2.0.0")
    wrap(client, context)
    return client


def hello(client: LmtpClient) -> LmtpClient:
    client.send(b"LHLO c\r\n")
    reply = client.reply()
    assert reply.code == 250 and b"STARTTLS" not in reply.lines
    return client


def delivers(client: LmtpClient, body: bytes = BODY) -> bool:
    return client.deliver("s@x", ["u@a"], body).verdict(0).text.startswith("250 2.0.0 stored")


# --- mail ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_mail_arrives_as_it_is(authority: Authority, ours: Signed, implicit: bool, latest: ssl.TLSVersion) -> None:
    body = b"Subject: x\r\n\r\n" + (bytes(range(33, 127)) * 7 + b"\r\n") * 3000
    context = context_of(authority)
    context.maximum_version = latest
    with standing(ours, implicit=implicit) as (proxy, backend):
        if implicit:
            client = plain(proxy)
            wrap(client, context)
            assert client.reply().code == 220
        else:
            client = starttls(proxy, context)
        with hello(client):
            assert delivers(client, body) and delivers(client)
            client.quit()
        assert [each.body.bytes for each in backend.transactions() if each.body is not None] == [body, BODY]
        assert re.search(r"INFO \w{8}: TLS with 127\.\S+: TLSv1\.[23], \S+\n", proxy.log())


def test_without_required_a_client_may_do_without(ours: Signed) -> None:
    with standing(ours) as (proxy, _), proxy.client() as client:
        assert delivers(client)
        client.quit()


def test_records_octet_by_octet(authority: Authority, ours: Signed) -> None:
    with standing(ours) as (proxy, backend):
        with hello(starttls(proxy, context_of(authority))) as client:
            for octet in b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n":
                client.send(bytes([octet]))
            assert [client.reply().code for _ in range(3)] == [250, 250, 354]
            for octet in BODY + b".\r\n":
                client.send(bytes([octet]))
            assert client.reply().positive
            client.quit()
        [transaction] = backend.transactions()
        assert transaction.body is not None and transaction.body.bytes == BODY


def test_over_several_workers(authority: Authority, ours: Signed) -> None:
    with standing(ours, {"workers": 2}) as (proxy, _):
        for _ in range(4):
            with hello(starttls(proxy, context_of(authority))) as client:
                assert delivers(client)
                client.quit()


# --- what is said before it ------------------------------------------------------------------------------------------


def test_required_defers_mail_before_it(authority: Authority, ours: Signed) -> None:
    with standing(ours, required=True) as (proxy, backend):
        with proxy.client() as client:
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n")
            assert [client.reply().text[:9] for _ in range(3)] == ["451 4.7.0", "503 5.5.1", "503 5.5.1"]
            client.quit()
        proxy.wait_log(r"from=<s@x>.*status=deferred \(451 4\.7\.0")
        assert not backend.transactions()
        with hello(starttls(proxy, context_of(authority))) as client:
            assert delivers(client)
            client.quit()


def test_a_unix_socket_beside_it_has_none(tmp_path: Path, ours: Signed) -> None:
    path, address = str(tmp_path / "s"), free_tcp_address()
    with standing(ours, {"socket": [path, list(address)]}, required=True) as (_, backend):
        with LmtpClient(path) as client:
            client.greet()
            client.send(b"STARTTLS\r\n")
            assert client.reply().code == 500
            assert delivers(client)
            client.quit()
        assert len(backend.transactions()) == 1


@pytest.mark.parametrize("gap", [False, True], ids=["same-segment", "next-segment"])
def test_a_command_behind_starttls_is_not_run(authority: Authority, ours: Signed, gap: bool) -> None:
    with standing(ours) as (proxy, backend):
        client = plain(proxy)
        with client:
            client.reply()
            injected = b"MAIL FROM:<evil@x>\r\nRCPT TO:<u@a>\r\nDATA\r\nevil\r\n.\r\n"
            if gap:
                client.send(b"LHLO c\r\nSTARTTLS\r\n")
                client.send(injected)
            else:
                client.send(b"LHLO c\r\nSTARTTLS\r\n" + injected)
            client.reply()
            if (reply := client.reply()).code == 220:  # it came behind our answer: then it is no TLS
                assert gap and client.at_end_or_reply() is None
            else:
                assert reply.text.startswith("421 4.7.0") and client.at_end_or_reply() is None
                proxy.wait_log(r"WARNING \w{8}: no TLS with \S+: it said more than STARTTLS in plain text")
        assert not backend.connections


# --- who may deliver -------------------------------------------------------------------------------------------------


def refused(client: LmtpClient) -> str:
    with client:
        client.sock.settimeout(20)
        try:
            client.send(b"LHLO c\r\n")
            reply = client.reply()
            assert client.at_end_or_reply() is None
            return reply.text
        except (ssl.SSLError, Disconnected, ConnectionError) as error:
            return str(error)


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_certificates_as_permission(
    tmp_path: Path, authority: Authority, ours: Signed, implicit: bool, latest: ssl.TLSVersion
) -> None:
    good = authority.sign("mx1.test", client=True)
    bad = authority.sign("mx2.test", client=True)
    old = authority.sign("mx1.test", file="old", begins=-9, ends=-2, client=True)
    other = Authority(tmp_path / "other", "Other CA").sign("mx1.test", client=True)
    address = free_tcp_address()
    control = f"{tmp_path}/control"

    def connect(certificate: Signed | None) -> LmtpClient:
        context = context_of(authority, certificate)
        context.maximum_version = latest
        if not implicit:
            return starttls(proxy, context)
        client = plain(proxy)
        wrap(client, context)
        return client

    keys = {"ca": authority.path, "allow_subjects": ["MX1.test"], "implicit": implicit}
    if not implicit:
        keys["required"] = True
    with standing(ours, {"metrics": list(address), "control": {"socket": control}}, **keys) as (proxy, backend):
        for certificate, why in ((None, "no_certificate"), (bad, "subject")):
            assert refused(connect(certificate)).startswith("421 4.7.1"), why
        for certificate in (old, other):
            try:
                assert "alert" in refused(connect(certificate))
            except (ssl.SSLError, ConnectionError):
                pass  # TLS 1.2: within the handshake
        proxy.wait_log(r"no TLS with \S+: it has shown no certificate")
        proxy.wait_log(r"no TLS with \S+: its certificate's subject is not in allow_subjects: CN=mx2\.test")
        proxy.wait_log(r"no TLS with \S+: its certificate: certificate has expired")
        proxy.wait_log(r"no TLS with \S+: its certificate: unable to get local issuer certificate")
        assert not backend.connections
        client = connect(good)
        if implicit:
            client.reply()
        with hello(client):
            assert delivers(client)
            [told] = json.loads(ctl("--socket", control, "--json", "sessions").out)["sessions"]
            assert re.fullmatch(r"TLSv1\.[23], \S+, CN=mx1\.test", told["tls"])
            client.quit()
        shown = series(fetch(address, "/metrics").text)
        reasons = {"no_certificate": 1, "subject": 1, "certificate": 2, "broken": 0, "closed": 0, "silent": 0}
        for reason, number in reasons.items():
            assert value(shown, "client_tls_failures_total", reason=reason) == number, reason
        assert value(shown, "sessions_tls_total") == 3 and value(shown, "sessions_accepted_total") == 5


@pytest.mark.parametrize(
    "entry, passes",
    [("CN=mx1.test", True), ("CN=mx1", False), ("mx1.test", True), ("MX1.TEST", True), ("mx1", False)],
)  # fmt: skip
def test_what_an_entry_of_allow_subjects_is(authority: Authority, ours: Signed, entry: str, passes: bool) -> None:
    good = authority.sign("mx1.test", client=True)
    with standing(ours, ca=authority.path, required=True, allow_subjects=[entry]) as (proxy, _):
        client = starttls(proxy, context_of(authority, good))
        if passes:
            with hello(client):
                assert delivers(client)
                client.quit()
        else:
            assert refused(client).startswith("421 4.7.1")


def test_both_allow_and_the_certificate_have_to_pass(authority: Authority, ours: Signed) -> None:
    good = authority.sign("mx1.test", client=True)
    config = {"allow": ["192.0.2.0/24"]}
    with standing(ours, config, ca=authority.path, required=True) as (proxy, _), plain(proxy) as client:
        assert client.reply().text.startswith("421 4.7.1")
    with (
        standing(ours, {"allow": ["127.0.0.0/8"]}, ca=authority.path, required=True) as (proxy, _),
        hello(starttls(proxy, context_of(authority, good))) as client,
    ):
        assert delivers(client)
        client.quit()


# --- each way in which it fails --------------------------------------------------------------------------------------


@pytest.mark.parametrize("octets", [b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
@pytest.mark.parametrize("ends", [True, False], ids=["closes", "silent"])
def test_a_client_that_vanishes_amid_the_handshake(
    authority: Authority, ours: Signed, octets: bytes, ends: bool
) -> None:
    with standing(ours, {"timeouts": {"greeting": 2}}, implicit=True) as (proxy, _):
        before = proxy.descriptors()
        began = time.monotonic()
        with plain(proxy) as client:
            if octets:
                client.send(octets)
            if ends:
                client.close()
                proxy.wait_log(r"no TLS with \S+: it closed the connection")
            else:
                assert client.at_end_or_reply() is None and 1 < time.monotonic() - began < 15
                proxy.wait_log(r"no TLS with \S+: no answer in time \(2 s\)")
        assert proxy.settles(before)


@pytest.mark.parametrize("said", [b"LHLO c\r\n" * 20, b"GET / HTTP/1.1\r\n\r\n", bytes(300)])
def test_a_client_that_speaks_no_tls(authority: Authority, ours: Signed, said: bytes) -> None:
    with standing(ours, implicit=True) as (proxy, _):
        with plain(proxy) as client:
            client.send(said)
            while client.sock.recv(100):  # the alert
                pass
        proxy.wait_log(r"no TLS with \S+: (wrong version number|http request|record layer failure)")


def test_an_old_version_is_refused(authority: Authority, ours: Signed) -> None:
    context = context_of(authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with standing(ours) as (proxy, _):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            starttls(proxy, context)
        proxy.wait_log(r"no TLS with \S+: (unsupported protocol|no shared cipher)")


@pytest.mark.parametrize("how", ["close_notify", "cut", "reset", "garbage"])
def test_what_ends_amid_data_delivers_nothing(authority: Authority, ours: Signed, how: str) -> None:
    with standing(ours) as (proxy, backend):
        with hello(starttls(proxy, context_of(authority))) as client:
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n")
            assert [client.reply().code for _ in range(3)] == [250, 250, 354]
            client.send(b"half of it\r\n")
            raw = socket.socket(fileno=client.sock.detach()) if how != "close_notify" else None
            if raw is None:
                assert isinstance(client.sock, ssl.SSLSocket)
                try:
                    client.sock.unwrap()
                except (ssl.SSLError, OSError):
                    pass
            else:
                if how == "garbage":
                    raw.sendall(b"\r\n.\r\nin plain text")
                if how == "reset":
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                raw.close()
        proxy.wait_log(r"status=aborted")
        assert all(not transaction.dotted for transaction in backend.transactions())


def test_a_key_of_4096_bits(authority: Authority) -> None:
    """That it holds nobody up is in tests/unit/clients/test_tls.py."""
    slow = authority.sign("127.0.0.1", file="rsa4096", kind="rsa:4096")
    with standing(slow) as (proxy, _):
        for _ in range(3):
            with hello(starttls(proxy, context_of(authority))) as client:
                assert delivers(client)
                client.quit()


def test_a_client_that_renegotiates_is_not_followed(authority: Authority, ours: Signed) -> None:
    """OpenSSL's own client does so at an R, in TLS 1.2."""
    with standing(ours) as (proxy, _):
        assert isinstance(proxy.address, tuple)
        host, port = proxy.address
        command = ["openssl", "s_client", "-tls1_2", "-starttls", "lmtp", "-connect", f"{host}:{port}"]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            assert client.stdin is not None
            proxy.wait_log(r"TLS with \S+: TLSv1\.2")
            client.stdin.write(b"R\n")
            client.stdin.flush()
            assert b"no renegotiation" in client.communicate(timeout=20)[0]
        finally:
            client.kill()
            client.wait()
        with hello(starttls(proxy, context_of(authority))) as other:
            assert delivers(other)
            other.quit()


def test_a_client_that_says_all_at_once_and_ends(authority: Authority, ours: Signed) -> None:
    body = b"Subject: x\r\n\r\n" + (b"x" * 70 + b"\r\n") * 6000
    with standing(ours) as (proxy, backend):
        with hello(starttls(proxy, context_of(authority))) as client:
            client.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<u@a>\r\nDATA\r\n")
            assert [client.reply().code for _ in range(3)] == [250, 250, 354]
            client.send(body + b".\r\nQUIT\r\n")
            client.sock.shutdown(socket.SHUT_WR)
            proxy.wait_log(r"status=sent")
        [transaction] = backend.transactions()
        assert transaction.body is not None and transaction.body.bytes == body


# --- reload, stop ----------------------------------------------------------------------------------------------------


def test_the_files_are_read_again_with_a_reload(tmp_path: Path, authority: Authority, ours: Signed) -> None:
    tmp_path.chmod(0o755)
    other = Authority(tmp_path / "other", "Other CA")
    theirs = other.sign("127.0.0.1", file="theirs")
    used = Signed(str(tmp_path / "used.pem"), str(tmp_path / "used.key"))

    def use(signed: Signed) -> None:
        shutil.copy(signed.certificate, used.certificate)
        shutil.copy(signed.key, used.key)

    use(ours)
    with standing(used) as (proxy, _):
        kept = hello(starttls(proxy, context_of(authority)))
        use(theirs)
        proxy.reload()
        with pytest.raises(ssl.SSLCertVerificationError):
            starttls(proxy, context_of(authority))
        with hello(starttls(proxy, context_of(other))) as client:
            assert delivers(client)
            client.quit()
        with kept:
            assert delivers(kept), "who is connected goes on"
            kept.quit()
        Path(used.certificate).write_text("nothing")
        proxy.reload()
        assert re.search(r"config\.tls\.cert: \S+/used\.pem holds no certificate", proxy.log())
        with hello(starttls(proxy, context_of(other))) as client:
            assert delivers(client), "and nothing has changed"
            client.quit()
        del proxy.config["config"]["tls"]
        proxy.write_config()
        proxy.reload()
        with proxy.client() as client:
            client.send(b"STARTTLS\r\n")
            assert client.reply().code == 500
            client.quit()


def test_a_stop(authority: Authority, ours: Signed) -> None:
    """One is idle in TLS and is told so, one amid its handshake is closed without a word in plain text."""
    with standing(ours, {"timeouts": {"greeting": 60}}) as (proxy, _):
        idle = hello(starttls(proxy, context_of(authority)))
        silent = plain(proxy)
        silent.reply()
        silent.send(b"LHLO c\r\nSTARTTLS\r\n")
        assert [silent.reply().code for _ in range(2)] == [250, 220]
        assert proxy.stop() == 0
        with idle, silent:
            assert idle.reply().text.startswith("421 4.3.2")
            assert silent.at_end_or_reply() is None
