# SPDX-License-Identifier: GPL-3.0-or-later
"""`config.metrics` of the real process: the numbers are those of the mail that went through, and no client harms it."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from tests import ROOT
from tests.support.backend import FakeBackend
from tests.support.control import Control, add_control, bare_connection
from tests.support.delays import Delays
from tests.support.http import Series, add_metrics, fetch, series, value
from tests.support.package import existing
from tests.support.patience import SOON
from tests.support.proxy import BOTH_MODES, PROGRAM, ProxyProcess, config_of, free_tcp_address
from tests.support.script import HEALTHY, Await, Close, say

USERS = {
    "alice@example.org": "old",
    "bob@example.org": "new",
    "carol@example.org": "reject",
    "dave@example.org": "hold",
    "zoe@example.org": "dead",
}
MESSAGE = b"Subject: x\r\nMessage-ID: <1@x>\r\n\r\nx\r\n"


@dataclass
class Watched:
    """Two stores behind a proxy with a control socket and `metrics`."""

    old: FakeBackend
    new: FakeBackend
    proxy: ProxyProcess
    control: Control
    address: tuple[str, int]

    def metrics(self) -> Series:
        answer = fetch(self.address, "/metrics")
        assert answer.code == 200, answer
        return series(answer.text)

    def deliver(self, *recipients: str) -> None:
        with self.proxy.client() as client:
            client.deliver("secret.sender@x", recipients, MESSAGE)


@pytest.fixture
def watched() -> Iterator[Watched]:
    with FakeBackend() as old, FakeBackend(transport="tcp") as new:
        config = config_of({"old": old, "new": new}, dict(USERS), hold_timeout=0.2, idle_timeout=30)
        config["backends"]["dead"] = {"socket": "/nonexistent/lmtp"}
        proxy = ProxyProcess(config)
        add_control(proxy)
        address = add_metrics(proxy)
        with proxy:
            yield Watched(old, new, proxy, Control(proxy), address)


def eventually(condition: Callable[[], bool], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_healthz_and_readyz(workers: int) -> None:
    """A store that is down changes neither; a stop that waits for a transaction is not ready, and healthy."""
    slow = threading.Event()
    with FakeBackend(replace(HEALTHY, final=(Await(slow), *HEALTHY.final))) as store:
        proxy = ProxyProcess(config_of({"a": store}), workers=workers)
        proxy.config["backends"]["dead"] = {"socket": "/nonexistent/lmtp"}
        proxy.config["users"]["@dead"] = "dead"
        proxy.write_config()
        address = add_metrics(proxy)
        with proxy, proxy.client() as client:
            assert client.envelope("s@x", ["u@dead"]).rcpts[0].code == 451
            for path in ("/healthz", "/readyz"):
                answer = fetch(address, path)
                assert (answer.code, answer.text) == (200, "ok\n")
                assert fetch(address, path, "HEAD").code == 200
                assert fetch(address, path, "POST").code == 405
            client.command("RSET")
            assert client.envelope("s@x", ["u@a"]).data is not None
            client.send(b"x\r\n.\r\n")
            assert store.wait_for(lambda: any(each.dot_at is not None for each in store.transactions()))
            proxy.signal(signal.SIGTERM)
            eventually(lambda: fetch(address, "/readyz").code == 503)
            assert fetch(address, "/readyz").text == "stopping\n"
            assert fetch(address, "/healthz").code == 200
            slow.set()
            assert client.reply().code == 250
            assert proxy.wait() == 0


# --- the numbers -----------------------------------------------------------------------------------------------------


@BOTH_MODES
def test_a_message_that_is_refused_as_a_whole_is_no_answered_one(watched: Watched) -> None:
    with watched.proxy.client() as client:
        client.deliver("s@x", ["alice@example.org"], b"12345\n.\r\n")
        client.deliver("s@x", ["alice@example.org"], b"12345\r\n")
        found = watched.metrics()
    assert value(found, "transactions_total", result="refused") == 1
    assert value(found, "transactions_total", result="answered") == 1
    assert value(found, "received_message_bytes_total") == 9 + 7


@BOTH_MODES
def test_the_counters_are_those_of_the_mail(watched: Watched) -> None:
    watched.old.script = replace(HEALTHY, rcpt_by={"full@example.org": say("452 4.2.2 full")})
    watched.proxy.config["users"]["full@example.org"] = "old"
    watched.proxy.config["users"]["gone@example.org"] = "new"
    watched.proxy.reload()
    watched.new.script = replace(HEALTHY, rcpt_by={"gone@example.org": say("550 5.1.1 gone")})
    with watched.proxy.client() as client:
        for _ in range(3):
            client.deliver("s@x", ["alice@example.org", "bob@example.org", "full@example.org", "gone@example.org"])
        client.deliver("s@x", ["carol@example.org", "dave@example.org", "nobody@example.org"])
        client.command("RSET")
        found = watched.metrics()
        assert value(found, "sessions") == 1
    assert value(found, "sessions_accepted_total") == 1
    assert value(found, "transactions_total", result="answered") == 3
    assert value(found, "transactions_total", result="declined") == 1, "nobody of the last one was accepted"
    assert value(found, "transactions_total", result="aborted") == 0
    for backend, sent, deferred, bounced in (("old", 3, 3, 0), ("new", 3, 0, 3)):
        for outcome, count in (("sent", sent), ("deferred", deferred), ("bounced", bounced), ("aborted", 0)):
            assert value(found, "recipients_total", backend=backend, outcome=outcome) == count, (backend, outcome)
        assert value(found, "backend_connections_opened_total", backend=backend) == 1
        assert value(found, "backend_connect_seconds_count", backend=backend) == 1
        assert value(found, "backend_reply_seconds_count", backend=backend) == 3
        assert value(found, "backend_connections", backend=backend, state="idle") == 1
        assert value(found, "backend_connections", backend=backend, state="in_use") == 0
        assert value(found, "backend_connections_limit", backend=backend) == 20
        assert value(found, "backend_up", backend=backend) == 1
    sent_octets = value(found, "backend_sent_message_bytes_total", backend="old")
    assert sent_octets > 0 and value(found, "received_message_bytes_total") == sent_octets
    assert value(found, "refused_recipients_total", reason="parked") == 2
    assert value(found, "refused_recipients_total", reason="unknown") == 1
    assert value(found, "users", backend="old") == 2 and value(found, "users", backend="hold") == 1
    assert value(found, "config_generation") == 2
    assert value(found, "reloads_total", result="done") == 1
    assert value(found, "last_reload_successful") == 1
    watched.proxy.config["users"]["alice@example.org"] = "nowhere"
    assert "refused" in watched.proxy.reload()
    found = watched.metrics()
    assert value(found, "last_reload_successful") == 0
    assert value(found, "reloads_total", result="refused") == 1


@BOTH_MODES
def test_what_is_under_way(watched: Watched) -> None:
    import threading

    go = threading.Event()
    watched.old.script = replace(HEALTHY, final=(Await(go), *HEALTHY.final))
    client = watched.proxy.client(timeout=20)
    outcome = client.envelope("s@x", ["alice@example.org"])
    client.send(MESSAGE + b".\r\n")
    eventually(lambda: value(watched.metrics(), "deliveries_in_flight", phase="final_dot") == 1)
    found = watched.metrics()
    assert value(found, "backend_connections", backend="old", state="in_use") == 1
    time.sleep(0.2)
    go.set()
    client.finals(outcome)
    client.close()
    found = watched.metrics()
    assert value(found, "deliveries_in_flight", phase="final_dot") == 0
    assert value(found, "backend_reply_seconds_bucket", backend="old", le="0.1") == 0
    assert value(found, "backend_reply_seconds_count", backend="old") == 1
    assert value(found, "backend_reply_seconds_sum", backend="old") > 0.2


@BOTH_MODES
def test_aborted_uncertain_and_down(watched: Watched) -> None:
    client = watched.proxy.client()
    client.envelope("s@x", ["alice@example.org"])
    client.send(b"Subject: half")
    client.reset()
    eventually(lambda: value(watched.metrics(), "recipients_total", backend="old", outcome="aborted") == 1)
    watched.old.script = replace(HEALTHY, final=(Close(),))
    watched.deliver("alice@example.org")
    found = watched.metrics()
    assert value(found, "uncertain_recipients_total") == 1
    assert value(found, "backend_uncertain_recipients_total", backend="old") == 1
    assert value(found, "recipients_total", backend="old", outcome="deferred") == 1
    assert value(found, "backend_up", backend="dead") == 1
    watched.deliver("zoe@example.org")
    found = watched.metrics()
    assert value(found, "backend_up", backend="dead") == 0
    assert value(found, "backend_connection_failures_total", backend="dead") == 1
    assert value(found, "recipients_total", backend="dead", outcome="deferred") == 1


def test_a_wait_for_a_connection_is_counted() -> None:
    go = threading.Event()
    with FakeBackend(replace(HEALTHY, final=(Await(go), *HEALTHY.final))) as store:
        config = config_of({"old": store}, {"alice": "old"}, ignoreDomain=True)
        config["backends"]["old"].update(max_connections=1, max_per_user=2)  # type: ignore[attr-defined]
        proxy = ProxyProcess(config, workers=1)
        address = add_metrics(proxy)
        with proxy, proxy.client() as one, proxy.client() as other:
            outcomes = [(client, client.envelope("s@x", ["alice@x"])) for client in (one,)]
            one.send(MESSAGE + b".\r\n")
            other.command("LHLO x")
            other.send(b"MAIL FROM:<s@x>\r\nRCPT TO:<alice@x>\r\n")

            def found(name: str) -> float:
                return value(series(fetch(address, "/metrics").text), name, backend="old")

            eventually(lambda: found("backend_pool_waiting") == 1)
            go.set()
            for client, outcome in outcomes:
                client.finals(outcome)
            assert found("backend_pool_waits_total") == 1


def test_a_stall_of_the_event_loop_is_noticed(watched: Watched) -> None:
    before = watched.metrics()
    with watched.proxy.client():
        time.sleep(0.25)
        watched.proxy.signal(signal.SIGSTOP)
        time.sleep(2.0)
        watched.proxy.signal(signal.SIGCONT)
        eventually(lambda: value(watched.metrics(), "event_loop_longest_stall_seconds") > 1.5)
        found = watched.metrics()
    assert value(before, "event_loop_longest_stall_seconds") < 1.5
    assert value(found, "event_loop_longest_stall_seconds") < SOON
    looks = value(found, "event_loop_lateness_seconds_count")
    assert value(found, "event_loop_lateness_seconds_bucket", le="0.25") < looks


def test_counters_never_go_back_when_a_worker_dies() -> None:
    with FakeBackend() as store:
        proxy = ProxyProcess(config_of({"old": store}, {"alice": "old"}, ignoreDomain=True), workers=2)
        address = add_metrics(proxy)
        add_control(proxy)
        with proxy:
            control = Control(proxy)
            for _ in range(20):
                with proxy.client() as client:
                    client.deliver("s@x", ["alice@x"])
            before = series(fetch(address, "/metrics").text)
            assert value(before, "recipients_total", backend="old", outcome="sent") == 20
            for worker in control.get("/status")["workers"]:
                os.kill(worker["pid"], signal.SIGKILL)
            seen = [fetch(address, path) for path in ("/", "/", "/metrics", "/metrics") for _ in range(3)]
            assert {answer.code for answer in seen} <= {200, 503}
            assert {answer.header["content-type"] for answer in seen[:6]} == {"text/html; charset=utf-8"}
            eventually(lambda: sum(w["restarts"] for w in control_status(control)["workers"]) == 2)

            def answered() -> bool:
                answer = fetch(address, "/metrics")
                return answer.code == 200 and value(series(answer.text), "workers", state="serving") == 2

            eventually(answered)
            after = series(fetch(address, "/metrics").text)
            assert value(after, "worker_restarts_total") == 2
            counters = [key for key in before if re.search("_(total|bucket|count|sum)$", key[0])]
            assert len(counters) > 50
            assert [key for key in counters if after[key] < before[key]] == []
            with proxy.client() as client:
                client.deliver("s@x", ["alice@x"])
            found = series(fetch(address, "/metrics").text)
            assert value(found, "recipients_total", backend="old", outcome="sent") == 21


def control_status(control: Control) -> Any:
    answer = control.ask("GET", "/status")
    return answer.document if answer.code == 200 else {"workers": [{"restarts": 0}]}


@BOTH_MODES
def test_the_formats(watched: Watched) -> None:
    watched.deliver("alice@example.org")
    plain = fetch(watched.address, "/metrics")
    assert plain.header["content-type"].startswith("text/plain; version=0.0.4")
    accept = {"Accept": "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    other = fetch(watched.address, "/metrics", headers=accept)
    # Debian 12's prometheus_client 0.16 has the format of 1.0.0, and calls it 0.0.1.
    assert re.match(r"application/openmetrics-text; version=(1\.0\.0|0\.0\.1);", other.header["content-type"])
    assert other.text.endswith("# EOF\n")
    names = {family.name for family in parse_openmetrics(other.text)}  # type: ignore[no-untyped-call]
    assert {"lmtp_proxy_recipients", "lmtp_proxy_backend_reply_seconds"} <= names
    connection = bare_connection(watched.control.path)
    connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    octets = b""
    while piece := connection.recv(65536):
        octets += piece
    connection.close()
    over_control = series(octets.partition(b"\r\n\r\n")[2].decode())
    assert over_control.keys() == series(plain.text).keys()


# --- what it shows ---------------------------------------------------------------------------------------------------


@BOTH_MODES
def test_nothing_names_a_person(watched: Watched) -> None:
    """Users, senders, recipients and Message-IDs stay away from a port that anybody can read."""
    watched.new.script = replace(HEALTHY, greeting=say("554 5.3.2 no mail for <bob@example.org>"))
    watched.deliver("bob@example.org")
    watched.old.script = replace(HEALTHY, final=(Close(),))
    watched.deliver("alice@example.org")
    watched.proxy.config["users"]["bob@example.org"] = "old"
    watched.proxy.reload()
    watched.control.post("/drain", {"users": ["bob@example.org"], "timeout": 5})
    watched.proxy.config["users"]["erin@example.org"] = "nowhere"
    watched.proxy.reload()
    pages = {path: fetch(watched.address, path) for path in ("/", "/status", "/metrics")}
    assert [page.code for page in pages.values()] == [200, 200, 200]
    for name in ("alice", "bob", "carol", "dave", "erin", "secret.sender", "1@x"):
        assert [path for path, page in pages.items() if name in page.text] == [], name
    status = json.loads(pages["/status"].body)
    assert re.fullmatch(r"1 error \(\S+:\d+\)", status["reload"]["errors"][0])
    assert {each["name"]: each["trouble"] for each in status["backends"]}["new"] == "greeting: 554 5.3.2"
    text = pages["/"].text
    assert "new \N{RIGHTWARDS ARROW} old" in text and "drained" in text and "refused" in text
    history = watched.control.get("/history")["history"]
    assert [event["kind"] for event in history] == ["reload", "drain", "reload"]
    assert [event.get("ok") for event in history] == [False, None, True]
    assert history[1]["users"] == ["bob@example.org"] and history[1]["done"]
    assert history[2]["moved"] == [{"from": "new", "to": "old", "count": 1, "users": ["bob@example.org"]}]


@BOTH_MODES
def test_the_curves_have_what_was_before_anybody_looked(watched: Watched) -> None:
    time.sleep(1.0)  # there is one sample at the start, and another one every five seconds
    watched.deliver("alice@example.org")
    time.sleep(6.0)

    def highest() -> str:
        curve = fetch(watched.address, "/").text.partition("<title>Clients accepted per second")[2]
        found = re.search(r"<figcaption>max (.*?)</figcaption>", curve)
        assert found is not None
        return found[1]

    eventually(lambda: highest() != "0")


@BOTH_MODES
def test_it_is_read_only(watched: Watched) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for path in ("/", "/metrics", "/status"):
            answer = fetch(watched.address, path, method)
            assert answer.code == 405 and answer.header["allow"] == "GET, HEAD", (method, path)
    hidden = ("/reload", "/drain", "/inflight", "/sessions", "/uncertain", "/history", "/figures", "/lookup?address=a")
    for path in (*hidden, "/x"):
        for method in ("GET", "POST"):
            assert fetch(watched.address, path, method).code == 404, (method, path)
    head = fetch(watched.address, "/", "HEAD")
    assert head.code == 200 and head.body == b"" and int(head.header["content-length"]) > 1000
    assert "script-src 'sha256-" in head.header["content-security-policy"]
    assert "unsafe" not in head.header["content-security-policy"]


def test_what_nobody_asks_for_is_not_loaded() -> None:
    late = existing("prometheus_client", "lmtp_proxy.web.page", "lmtp_proxy.web.server")
    code = (
        "import sys, lmtp_proxy.service, lmtp_proxy.workers.supervisor, lmtp_proxy.workers.service;"
        f"print({late!r} & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_without_the_key_nobody_listens() -> None:
    with FakeBackend() as store, ProxyProcess(config_of({"old": store}, {"a": "old"}), workers=1) as proxy:
        assert "metrics" not in proxy.log()
        with open(f"/proc/{proxy.pid}/net/tcp") as file:
            listening = [line.split()[9] for line in file if line.split()[3] == "0A"]
        own = {os.readlink(f"/proc/{proxy.pid}/fd/{name}") for name in os.listdir(f"/proc/{proxy.pid}/fd")}
        assert not any(f"socket:[{inode}]" in own for inode in listening)


# --- start -----------------------------------------------------------------------------------------------------------


def run(config: str, directory: str) -> subprocess.CompletedProcess[str]:
    path = os.path.join(directory, "c.yml")
    with open(path, "w") as file:
        file.write(config)
    return subprocess.run([sys.executable, str(PROGRAM), "-c", path], capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_one_line_and_leaves_nothing(tmp_path: Any, workers: int) -> None:
    host, port = free_tcp_address()
    with socket.create_server((host, port)):
        done = run(
            f"config:\n  socket: {tmp_path}/s\n  control: {{socket: {tmp_path}/ctl}}\n  workers: {workers}\n"
            f"  metrics: [{host}, {port}]\nbackends: {{}}\n",
            str(tmp_path),
        )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line == f"{tmp_path}/c.yml: config.metrics: cannot listen on {host}:{port}: Address already in use"
    assert sorted(os.listdir(tmp_path)) == ["c.yml"]


def test_check_says_where(tmp_path: Any) -> None:
    path = tmp_path / "c.yml"
    path.write_text(f"config:\n  socket: {tmp_path}/s\n  metrics: [127.0.0.1, 9424]\nbackends: {{}}\n")
    done = subprocess.run([sys.executable, str(PROGRAM), "--check", "-c", str(path)], capture_output=True, text=True)
    assert done.returncode == 0
    note, line = done.stdout.splitlines()
    assert line == f"{path}: OK: 0 users, 0 backends, on {tmp_path}/s, metrics on http://127.0.0.1:9424/"
    assert note.startswith(f"note: {path}: there are no users and there is no fallback_backend: ")


def test_without_prometheus_client_it_does_not_start(tmp_path: Any) -> None:
    """It is found missing when somebody looks, not by the first scrape."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['prometheus_client'] = None\n")
    path = tmp_path / "c.yml"
    path.write_text(f"config:\n  socket: {tmp_path}/s\n  metrics: [127.0.0.1, 9424]\nbackends: {{}}\n")
    for more in ([], ["--check"]):
        done = subprocess.run(
            [sys.executable, str(PROGRAM), *more, "-c", str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            timeout=20,
        )
        assert done.returncode == 1
        assert done.stderr == (
            f"{path}: config.metrics: this Python has no prometheus_client: install it"
            " (Debian: python3-prometheus-client)\n"
        )


@BOTH_MODES
def test_a_first_scrape_without_a_file_to_open_is_no_bug_and_not_the_last(watched: Watched) -> None:
    pid = watched.proxy.pid
    with socket.create_connection(watched.address, timeout=20) as sock:  # the server is there with its first client
        sock.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        while sock.recv(65536):
            pass
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used, there = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")), watched.proxy.descriptors()
    with socket.create_connection(watched.address, timeout=20) as sock:
        eventually(lambda: watched.proxy.descriptors() > there)  # it is accepted
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 2, before[1]))
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"Too many open files" in answer
    assert "Traceback" not in watched.proxy.log()
    assert value(watched.metrics(), "config_generation") == 1


def test_an_address_that_is_not_loopback_is_warned_of() -> None:
    port = free_tcp_address()[1]
    with FakeBackend() as store:
        proxy = ProxyProcess(config_of({"old": store}, {"a": "old"}, metrics=["0.0.0.0", port]))
        with proxy:
            proxy.wait_log(rf"WARNING.* 0\.0\.0\.0:{port} \(config.metrics\) is no loopback address")
            assert fetch(("127.0.0.1", port), "/metrics").code == 200


@BOTH_MODES
def test_a_change_takes_effect_at_the_next_start(watched: Watched) -> None:
    watched.proxy.config["config"]["metrics"] = list(free_tcp_address())
    since = watched.proxy.mark()
    watched.proxy.reload()
    watched.proxy.wait_log("a change of config.metrics takes effect at the next start only", since=since)
    assert fetch(watched.address, "/metrics").code == 200


# --- bad clients -----------------------------------------------------------------------------------------------------


def bad_clients(address: tuple[str, int]) -> list[socket.socket]:
    """Everything that a port in a network has to live with, all at once."""
    said = [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 60000,
        b"GET /" + b"a" * 100000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 5000,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 200,
        b"LHLO x\r\nMAIL FROM:<s@x>\r\n",
    ]
    found = []
    for octets in said * 6:
        sock = socket.create_connection(address, timeout=5)
        sock.setblocking(False)
        with suppress(OSError):
            sock.send(octets)
        found.append(sock)
    return found


@BOTH_MODES
def test_bad_clients_touch_no_mail_and_go(watched: Watched) -> None:
    with watched.proxy.client(timeout=20) as client:
        client.deliver("s@x", ["alice@example.org"], MESSAGE)
        clients = bad_clients(watched.address)
        delays = Delays(watched.proxy)
        for _ in range(30):
            with delays.one():
                client.deliver("s@x", ["alice@example.org", "bob@example.org"], MESSAGE)
        delays.check(1.5)
        for sock in clients:
            sock.close()
        eventually(lambda: fetch(watched.address, "/metrics").code == 200, 40)
        assert value(watched.metrics(), "recipients_total", backend="old", outcome="sent") == 31
    assert "Traceback" not in watched.proxy.log()
    assert watched.control.get("/status")["sessions"] in (0, 1)


def test_a_body_is_refused(watched: Watched) -> None:
    """With a method that the resource does not take, for that: no body would be right."""
    for method, answer in ((b"GET", b"HTTP/1.1 413 "), (b"POST", b"HTTP/1.1 405 ")):
        for body in (b"Content-Length: 1\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"):
            with socket.create_connection(watched.address, timeout=10) as sock:
                sock.sendall(method + b" /metrics HTTP/1.1\r\nHost: x\r\n" + body)
                said = sock.recv(65536)
            assert said.startswith(answer), (method, said)
            assert (b"\r\nAllow: GET, HEAD\r\n" in said) == (method == b"POST")


def test_the_whole_url_may_be_asked_for(watched: Watched) -> None:
    """The absolute form (RFC 9112, section 3.2.2), as a proxy in front may pass it on."""
    for target, code in (
        ("http://x/metrics", 200),
        ("HTTP://x:80/status", 200),
        ("http://x", 200),
        ("http://x/y", 404),
    ):
        assert fetch(watched.address, target).code == code, target


def test_many_who_say_nothing_cannot_keep_others_out_for_long(watched: Watched) -> None:
    idle = [socket.create_connection(watched.address, timeout=5) for _ in range(20)]
    try:
        began = time.monotonic()
        assert fetch_patiently(watched.address) == 200
        assert time.monotonic() - began < 45
        watched.deliver("alice@example.org")
    finally:
        for sock in idle:
            sock.close()


def fetch_patiently(address: tuple[str, int]) -> int:
    deadline = time.monotonic() + 45
    while True:
        try:
            return fetch(address, "/metrics").code
        except OSError:
            assert time.monotonic() < deadline


def test_a_storm_of_clients_is_no_storm_for_mail(watched: Watched) -> None:
    """With 200 backends a page takes 40 ms: one for each of the clients would leave nothing for mail."""
    for number in range(200):
        watched.proxy.config["backends"][f"b{number}"] = {"socket": "/nonexistent/lmtp"}
    watched.proxy.reload()
    storm = subprocess.Popen([sys.executable, "-c", _STORM.format(address=watched.address)], stdout=subprocess.PIPE)
    try:
        assert storm.stdout is not None and storm.stdout.read(1) == b"."
        with watched.proxy.client(timeout=60) as client:
            began, delays = time.monotonic(), Delays(watched.proxy)
            while time.monotonic() - began < 3 or len(delays.own) < 20:
                with delays.one():
                    client.deliver("s@x", ["alice@example.org"], MESSAGE)
    finally:
        storm.kill()
        storm.communicate()
    assert delays.median < 0.03, sorted(delays.own)
    # Nobody waits for those who are gone.
    assert fetch(watched.address, "/metrics").code == 200


_STORM = """
import socket, sys, threading
def scrape(path):
    while True:
        with socket.create_connection({address!r}, timeout=60) as sock:
            sock.sendall(b"GET %s HTTP/1.0\\r\\n\\r\\n" % path)
            while sock.recv(65536):
                pass
            if path == b"/" and not done:
                done.append(sys.stdout.write(".") + (sys.stdout.flush() or 0))
done = []
for path in (b"/",) * 100:
    threading.Thread(target=scrape, args=(path,)).start()
"""


@BOTH_MODES
def test_idle_clients_do_not_keep_a_scraper_waiting(watched: Watched) -> None:
    """A browser keeps its connection; some of them, or somebody who says half a request, must not blind Prometheus."""
    said = (b"", b"GET / HTTP/1.1\r\nX: ", b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n") * 20
    with ExitStack() as held:
        for octets in said:
            held.enter_context(socket.create_connection(watched.address, timeout=10)).sendall(octets)
        began = time.monotonic()
        assert fetch(watched.address, "/metrics").code == 200
        assert time.monotonic() - began < 9
