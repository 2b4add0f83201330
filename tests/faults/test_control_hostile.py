"""Clients of the control socket that are slow, greedy, odd or gone: each costs only itself, and mail goes on."""

from __future__ import annotations

import http.client
import json
import random
import resource
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmtp_proxy.control import server as control_server
from tests.support.backend import FakeBackend
from tests.support.control import Answer, Control, ControlConnection, add_control, answer_on, bare_connection
from tests.support.delays import Delays
from tests.support.package import PACKAGE, code_of_copy, copied_package
from tests.support.patience import SOON
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import HEALTHY, Await, Script, say

PATIENCE = 10  # seconds that a request, an idle connection or an unread answer may take
CONNECTIONS = 64
MAX_BODY = 4 * 2**20
LONGEST_DELIVERY = 0.5  # seconds; some 0.01 where the machine has nothing else to do


@dataclass
class Attacked:
    """One store, a proxy, and how many descriptors it has open when nobody is there."""

    store: FakeBackend
    proxy: ProxyProcess
    control: Control
    idle: int

    def connect(self, timeout: float = 20.0) -> socket.socket:
        return bare_connection(self.control.path, timeout)

    def say(self, octets: bytes) -> Answer:
        """The answer to these octets, which must be the only one: the connection is closed behind it."""
        with self.connect() as sock:
            with suppress(BrokenPipeError):  # refused before it was all sent
                sock.sendall(octets)
            answer = answer_on(sock)
            assert answer.header["connection"] == "close"
            assert at_end(sock), "open after an answer that says `close`"
        return answer


@pytest.fixture(scope="module")
def running() -> Iterator[Attacked]:
    with FakeBackend(keep_body=False) as store:
        config = config_of({"old": store}, {"u": "old", "stuck": "old"}, log={"level": "debug"})
        proxy = ProxyProcess(config)
        add_control(proxy)
        with proxy:
            control = Control(proxy)
            with proxy.client() as client:  # what is made at the first use only does not count
                client.deliver("warm-up@x", ["u"])
                client.quit()
            control.get("/status")
            assert store.wait_closed()
            time.sleep(0.2)
            yield Attacked(store, proxy, control, proxy.descriptors())
            time.sleep(1.1)  # the process title is brought up to date after a second
            assert proxy.stop() == 0
            assert "greenlets left: 0\n" in proxy.log()
            assert "internal error" not in proxy.log()


@pytest.fixture
def attacked(running: Attacked) -> Iterator[Attacked]:
    """With mail flowing all the time; afterwards everything is as before."""
    running.store.script = HEALTHY
    with mail_flowing(running.proxy):
        yield running
    assert running.proxy.settles(running.idle), "descriptors were left open"
    assert running.control.get("/status")["sessions"] == 0


@contextmanager
def mail_flowing(proxy: ProxyProcess) -> Iterator[None]:
    stop = threading.Event()

    def deliver() -> Delays:
        delays = Delays(proxy)
        with proxy.client() as client:
            while not stop.is_set() or len(delays.clock) < 2:
                with delays.one():
                    assert client.deliver("s@x", ["u"]).verdict(0).positive
                time.sleep(0.002)
            client.quit()
        return delays

    with ThreadPoolExecutor(1) as worker:
        running = worker.submit(deliver)
        try:
            time.sleep(0.2)
            yield
        finally:
            stop.set()
        delays = running.result()
    delays.check(LONGEST_DELIVERY)


def at_end(sock: socket.socket) -> bool:
    """The server has closed, with not an octet more."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def post(body: bytes, resource: str = "/drain", *header: str) -> bytes:
    lines = [f"POST {resource} HTTP/1.1", "Host: x", *(header or (f"Content-Length: {len(body)}",))]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


# --- what is no request ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n\r\n", b"\n", b"hello\r\n\r\n", b"LHLO me\r\n\r\n", b"\0" * 100 + b"\r\n\r\n", b"\xff\xfe\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET /status\r\n\r\n", b"GET /status HTTP\r\n\r\n",
        b"GET /status HTTP/1\r\n\r\n", b"GET /status HTTP/x.y\r\n\r\n", b"GET /status HTTP/9.9\r\n\r\n",
        b"GET /status HTTP/1.1.1\r\n\r\n", b"GET /status HTTP/-1.1\r\n\r\n", b"GET /sta tus HTTP/1.1\r\n\r\n",
        b"GET /status HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET /status HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"GET /status HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nContent-Length: 1_0\r\n\r\n", b"GET /status HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET /status HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
        b"HEAD /status HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde",
        post(b"zz\r\n", "/drain", "Transfer-Encoding: chunked"),
        post(b"-1\r\n", "/drain", "Transfer-Encoding: chunked"),
        post(b"5\r\nabcdefgh\r\nzz\r\n", "/drain", "Transfer-Encoding: chunked"),
        post(b"F" * 17 + b"\r\n", "/drain", "Transfer-Encoding: chunked"),
        post(b"1;" + b"x" * 9000 + b"\r\n", "/drain", "Transfer-Encoding: chunked"),
    ],
    ids=lambda octets: repr(octets)[:60],
)  # fmt: skip
def test_garbage_gets_400(attacked: Attacked, octets: bytes) -> None:
    answer = attacked.say(octets)
    assert answer.code == 400, answer
    assert isinstance(answer.document["error"], str)


@pytest.mark.parametrize(
    "octets, code",
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /status HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /status HTTP/1.1\r\n" + (b"X: " + b"a" * 9000 + b"\r\n") * 20 + b"\r\n", 431),
        (post(b"", "/drain", "Transfer-Encoding: gzip, chunked"), 501),
        (post(b"", "/drain", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 501),
        (post(b"", "/drain", f"Content-Length: {MAX_BODY + 1}"), 413),
        (post(b"", "/drain", "Content-Length: 99999999999999999"), 413),
        (post(b" " * (MAX_BODY + 1), "/drain"), 413),
        (post(b"", "/drain", "Transfer-Encoding: chunked") + (b"100000\r\n" + b" " * 2**20 + b"\r\n") * 5, 413),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_too_much_is_refused(attacked: Attacked, octets: bytes, code: int) -> None:
    begun = time.monotonic()
    assert attacked.say(octets).code == code
    assert time.monotonic() - begun < PATIENCE - 1, "it was read to its end, or waited for"


def test_a_client_that_writes_first_and_reads_then_comes_to_read_why(attacked: Attacked) -> None:
    answer = attacked.control.ask("POST", "/drain", b" " * (MAX_BODY + 2**20))
    assert answer.code == 413


def test_a_body_in_chunks_of_one_octet_delays_nobody(attacked: Attacked) -> None:
    """4 MiB of such chunks are 24 MiB on the wire, each looked at by itself."""
    answer = attacked.say(post(b"", "/drain", "Transfer-Encoding: chunked") + b"1\r\n \r\n" * MAX_BODY + b"0\r\n\r\n")
    assert answer.code in (413, 408), "too large, or too long for a busy machine"


def test_a_body_of_the_largest_size_is_taken(attacked: Attacked) -> None:
    text = json.dumps({"users": ["u"]}).encode()
    body = text + b" " * (MAX_BODY - len(text))
    assert attacked.control.post("/drain", body)["routes"] == {"u": "old"}
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:1], body[1:5], body[5:])) + b"0\r\n\r\n"
    assert attacked.say(post(chunks, "/drain", "Transfer-Encoding: chunked")).document["routes"] == {"u": "old"}


def test_a_deep_body_is_400(attacked: Attacked) -> None:
    for body in (b"[" * MAX_BODY, b'{"a":' * (MAX_BODY // 5)):
        assert attacked.control.ask("POST", "/drain", body).code == 400


# --- several requests on a connection --------------------------------------------------------------------------------


def test_requests_can_follow_each_other(attacked: Attacked) -> None:
    connection = ControlConnection(attacked.control.path)
    for number in range(20):
        assert connection.ask("GET", "/status").code == 200
        assert connection.ask("GET", f"/nothing{number}").code == 404
        assert connection.ask("POST", "/drain", {"users": ["u"]}).code == 200
        assert connection.ask("POST", "/drain", b"{").code == 400
    connection.close()


def test_pipelined_requests_are_answered_in_order_and_delay_nobody(attacked: Attacked) -> None:
    with attacked.connect() as sock, ThreadPoolExecutor(1) as writer:
        asked = writer.submit(sock.sendall, b"GET /status HTTP/1.1\r\n\r\nGET /n HTTP/1.1\r\n\r\n" * 1000)
        stream = sock.makefile("rb")
        codes = []
        for _ in range(2000):
            codes.append(int(stream.readline().split()[1]))
            length = 0
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert json.loads(stream.read(length))
        asked.result()
        stream.close()
    assert codes == [200, 404] * 1000


def test_http_1_0(attacked: Attacked) -> None:
    with attacked.connect() as sock:
        sock.sendall(b"GET /sessions HTTP/1.0\r\n\r\n")
        answer = answer_on(sock)
        assert answer.code == 200 and "sessions" in answer.document
        assert at_end(sock)
    with attacked.connect() as sock:
        for _ in range(2):
            sock.sendall(b"GET /sessions HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert answer_on(sock).code == 200


def test_a_client_is_told_to_go_on_when_it_asks(attacked: Attacked) -> None:
    with attacked.connect(5) as sock:
        sock.sendall(post(b"", "/drain", "Content-Length: 13", "Expect: 100-continue"))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b'{"all": true}')
        assert answer_on(sock).code == 200
    with attacked.connect(5) as sock:
        sock.sendall(post(b"", "/drain", f"Content-Length: {MAX_BODY + 1}", "Expect: 100-continue"))
        assert answer_on(sock).code == 413  # and no `100 Continue` before it


def test_a_client_that_ends_its_stream_gets_its_answer(attacked: Attacked) -> None:
    """As `nc -N` does; also while the answer has to be waited for."""
    go = threading.Event()
    attacked.store.script = Script(final_by={"stuck": (Await(go), *say("250 2.0.0 stored"))})
    with attacked.proxy.client() as client, attacked.connect() as sock:
        assert client.envelope("stuck@x", ["stuck"]).data is not None
        client.send(b"x\r\n.\r\n")
        wait_in_flight(attacked, "stuck@x")
        sock.sendall(post(b'{"users": ["stuck"]}'))
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(2.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        go.set()
        sock.settimeout(SOON)
        assert answer_on(sock).document["done"] is True
        assert client.reply().positive


@pytest.mark.parametrize("octets", [post(b'{"all": tr', "/drain", "Content-Length: 13"),
                                    post(b"d\r\n{", "/drain", "Transfer-Encoding: chunked"),
                                    post(b"", "/drain", "Transfer-Encoding: chunked")])  # fmt: skip
def test_half_a_body_is_400(attacked: Attacked, octets: bytes) -> None:
    since = attacked.proxy.mark()
    with attacked.connect() as sock:
        sock.sendall(octets)
        sock.shutdown(socket.SHUT_WR)
        assert answer_on(sock).code == 400
    assert "drain" not in attacked.proxy.log()[since:]


# --- slow ------------------------------------------------------------------------------------------------------------


def dribble(sock: socket.socket, octets: bytes, seconds: float) -> None:
    """One octet a second, until the peer has had enough."""
    deadline = time.monotonic() + seconds
    for octet in octets:
        if time.monotonic() > deadline or select.select([sock], [], [], 1.0)[0]:
            return
        try:
            sock.send(bytes([octet]))
        except OSError:
            return


def test_slow_clients_are_given_up(attacked: Attacked) -> None:
    """All at once, since each takes its 10 s: slow header, slow body, nothing at all, nothing any more, no reading."""
    begun = time.monotonic()
    with (
        attacked.connect() as header,
        attacked.connect() as body,
        attacked.connect() as chunks,
        attacked.connect() as silent,
        attacked.connect() as kept,
        attacked.connect() as deaf,
        ThreadPoolExecutor(3) as workers,
    ):
        workers.submit(dribble, header, b"GET /status HTTP/1.1\r\nX: " + b"x" * 100, 20)
        body.sendall(post(b"", "/drain", "Content-Length: 1000"))
        workers.submit(dribble, body, b" " * 100, 20)
        chunks.sendall(post(b"", "/drain", "Transfer-Encoding: chunked"))
        workers.submit(dribble, chunks, b"1\r\n \r\n" * 20, 20)
        kept.sendall(b"GET /status HTTP/1.1\r\n\r\n")
        assert answer_on(kept).code == 200
        deaf.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                deaf.send(b"GET /status HTTP/1.1\r\n\r\n" * 100)
        for sock in (header, body, chunks):
            sock.settimeout(PATIENCE + SOON)
            assert answer_on(sock).code == 408
            assert at_end(sock)
            assert PATIENCE - 1 < time.monotonic() - begun < PATIENCE + SOON
        for sock in (silent, kept):
            assert at_end(sock), "an idle connection got an answer"
            assert PATIENCE - 1 < time.monotonic() - begun < PATIENCE + SOON
        assert hung_up(deaf, PATIENCE)
        assert PATIENCE - 1 < time.monotonic() - begun < PATIENCE + SOON


def hung_up(sock: socket.socket, seconds: float) -> bool:
    """The server has closed, whatever there is to read before."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLHUP is always asked for
    return bool(poll.poll(seconds * 1000))


# --- many, and gone --------------------------------------------------------------------------------------------------


def test_more_connections_than_there_may_be_wait(attacked: Attacked) -> None:
    idle = [attacked.connect() for _ in range(CONNECTIONS)]
    try:
        for sock in idle:
            sock.sendall(b"GET /sessions HTTP/1.1\r\n\r\n")
            assert answer_on(sock).code == 200
        with attacked.connect() as waiting:
            waiting.sendall(b"GET /sessions HTTP/1.1\r\n\r\n")
            waiting.settimeout(0.5)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            idle.pop().close()
            waiting.settimeout(5)
            assert answer_on(waiting).code == 200
    finally:
        for sock in idle:
            sock.close()
    assert attacked.control.get("/sessions")


def eventually(condition: Callable[[], bool], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def wait_in_flight(attacked: Attacked, sender: str) -> None:
    assert attacked.store.wait_for(lambda: any(seen.dotted for seen in attacked.store.transactions(sender)))


def test_clients_that_vanish_during_a_drain_leave_nothing(attacked: Attacked) -> None:
    go = threading.Event()
    attacked.store.script = Script(final_by={"stuck": (Await(go), *say("250 2.0.0 stored"))})
    with attacked.proxy.client() as client:
        assert client.envelope("stuck@x", ["stuck"]).data is not None
        client.send(b"x\r\n.\r\n")
        wait_in_flight(attacked, "stuck@x")
        before = attacked.proxy.descriptors()
        since = attacked.proxy.mark()
        waiting = [attacked.connect() for _ in range(50)]
        for sock in waiting:
            sock.sendall(post(b'{"users": ["stuck"], "timeout": 600}'))
        eventually(lambda: attacked.proxy.log()[since:].count("control: drain stuck") == 50)
        assert attacked.proxy.descriptors() >= before + 45
        for sock in waiting:
            sock.close()
        assert attacked.proxy.settles(before + 2), "who is gone is still waited for"  # 2: the flow of mail
        go.set()
        assert client.reply().positive
        client.quit()


def test_clients_that_vanish_anywhere_leave_nothing(attacked: Attacked) -> None:
    chance = random.Random(3)
    requests = [
        b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n",
        post(b'{"users": ["u"]}'),
        post(b'8\r\n{"users"\r\n8\r\n: ["u"]}\r\n0\r\n\r\n', "/drain", "Transfer-Encoding: chunked"),
        post(b'{"backend": "old", "recipients": ["u", "u", "u"]}', "/preflight"),
        post(b"", "/reload"),
        post(json.dumps({"path": attacked.proxy.config_path}).encode(), "/check"),
    ]
    for _ in range(300):
        request = chance.choice(requests)
        with attacked.connect() as sock:
            with suppress(BrokenPipeError):
                sock.sendall(request[: chance.randint(0, len(request))] * chance.choice([1, 1, 5]))
            if chance.random() < 0.3:
                time.sleep(0.003)


def test_random_octets_do_no_harm(attacked: Attacked) -> None:
    chance = random.Random(4)
    for _ in range(200):
        request = bytearray(
            chance.choice([post(b'{"users": ["u"]}'), b"GET /lookup?address=u HTTP/1.1\r\nA: b\r\n\r\n"])
        )
        for _ in range(chance.randint(1, 6)):
            request[chance.randrange(len(request))] = chance.randrange(256)
        with attacked.connect(3) as sock:
            sock.sendall(bytes(request))
            sock.shutdown(socket.SHUT_WR)
            try:
                answer = answer_on(sock)
            except (http.client.HTTPException, ConnectionResetError):  # nothing came that could be answered
                continue
            assert answer.code in (200, 400, 404, 405, 408, 411, 413, 414, 431, 501), (request, answer)


def test_no_descriptor_left_is_one_line_and_a_pause(running: Attacked) -> None:
    pid = running.proxy.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    since = running.proxy.mark()
    # Without mail, which would find no descriptor either.
    with running.connect() as first:
        first.sendall(b"GET /sessions HTTP/1.1\r\n\r\n")
        assert answer_on(first).code == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with running.connect() as second:
                second.sendall(b"GET /sessions HTTP/1.1\r\nConnection: close\r\n\r\n")
                running.proxy.wait_log("control: cannot accept a client: Too many open files", since=since)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
                assert answer_on(second).code == 200
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert running.proxy.settles(running.idle)


def test_a_first_client_while_the_program_is_being_replaced_is_not_the_last(tmp_path: Path) -> None:
    """As pip does it: what is not there at this moment is there again a second later."""
    copy = copied_package(tmp_path)
    with FakeBackend() as store:
        proxy = ProxyProcess(config_of({"old": store}, {"a": "old"}), workers=1)
        path = add_control(proxy)
        module = copy / Path(control_server.__file__).relative_to(PACKAGE)
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-B", "-P", "-c", code_of_copy(copy), "-c", proxy.config_path],
                stderr=log,
                cwd=tmp_path,
            )
        try:
            deadline = time.monotonic() + 40
            while "ready:" not in (tmp_path / "log").read_text():
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
            module.rename(module.with_suffix(".away"))
            with bare_connection(path, 10) as client:
                client.sendall(b"GET /sessions HTTP/1.1\r\nConnection: close\r\n\r\n")
                while "control: cannot accept a client: No module named" not in (tmp_path / "log").read_text():
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.05)
                module.with_suffix(".away").rename(module)
                assert answer_on(client).code == 200
        finally:
            process.terminate()
            process.wait(10)
            shutil.rmtree(proxy.directory)
    assert "Traceback" not in (tmp_path / "log").read_text()
