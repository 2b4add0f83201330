"""lmtp-proxyctl against the real process, and against peers on the control socket that are no such thing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lmtp_proxy.ctl.client import ControlClient, ControlError
from tests.faults.conftest import Move
from tests.support.backend import FakeBackend
from tests.support.ctl import PROGRAM, Answer, FakeControl, Run, controlled, ctl, end_ctl, http, start_ctl
from tests.support.script import Await, Close, Script, say

LONG = "first.middle.last-name-of-quite-some-length+with-a-detail@mail.department.of.something.example.org"
USERS = {"alice@example.org": "old", "bob@example.org": "new", "carol@example.org": "reject", LONG: "old"}
VERBS = ("status", "lookup", "reload", "drain", "move", "inflight", "sessions", "backends", "check", "uncertain",
         "receipts", "requeue")  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[Move]:
    """Nothing in it changes but the number of the generation."""
    with (
        FakeBackend() as old,
        FakeBackend() as new,
        controlled({"old": old, "new": new}, USERS, fallback_backend="old") as proxy,
    ):
        yield Move(old, new, proxy)


@pytest.fixture
def own() -> Iterator[Move]:
    with FakeBackend() as old, FakeBackend() as new, controlled({"old": old, "new": new}, USERS) as proxy:
        yield Move(old, new, proxy)


def run(move: Move, *arguments: str, **settings: Any) -> Run:
    return ctl("-c", move.proxy.config_path, *arguments, **settings)


def in_flight(move: Move, user: str, go: threading.Event, last: str = "250 2.0.0 stored") -> threading.Thread:
    """A delivery to the old store that is past its dot and stays so until `go`."""
    move.old.script = Script(final=(Await(go), *say(last)))
    client = move.proxy.client(timeout=40)
    outcome = client.envelope("s@x", [user])
    client.send(b"Message-ID: <1@x>\r\n\r\nx\r\n.\r\n")
    assert move.old.wait_for(lambda: any(seen.dotted for seen in move.old.transactions()))

    def finish() -> None:
        client.finals(outcome)
        client.quit()

    thread = threading.Thread(target=finish)
    thread.start()
    return thread


# --- the verbs -------------------------------------------------------------------------------------------------------


def test_status(shared: Move) -> None:
    shown = run(shared, "status")
    assert (shown.status, shown.err) == (0, "")
    for part in (
        f"pid {shared.proxy.pid}",
        shared.proxy.config_path,
        "2 on old, 1 on new, 1 on reject",
        "all others  old",
    ):
        assert part in shown.out, shown.out
    assert "warning" not in shown.out
    document = run(shared, "status", "--json").document
    assert document["status"] == 0 and document["pid"] == shared.proxy.pid
    assert document["sha256_on_disk"] == document["config"]["sha256"]


def test_status_without_the_configuration_file(shared: Move) -> None:
    path = os.path.join(shared.proxy.directory, "ctl")
    for arguments in (
        ["--socket", path, "status"],
        ["status", "--socket", path],
        ["-c", "/nowhere", "status", "--socket", path],
    ):
        assert ctl(*arguments).status == 0


def test_lookup(shared: Move) -> None:
    shown = run(shared, "lookup", "<Alice+x@Example.org>")
    line = 1 + Path(shared.proxy.config_path).read_text().splitlines().index('  "alice@example.org": old')
    assert f"alice@example.org  <- {shared.proxy.config_path}:{line}\n" in shown.out, shown.out
    assert "backend   old" in shown.out and shown.status == 0
    assert "450 4.2.1" in run(shared, "lookup", "carol@example.org").out
    assert "fallback_backend" in run(shared, "lookup", "nobody@example.com").out
    assert run(shared, "--json", "lookup", LONG).document["keys"][0] == LONG
    assert run(shared, "lookup", LONG).status == 0
    bad = run(shared, "lookup", "<alice")
    assert (bad.status, bad.out) == (1, "") and "no address" in bad.error


def test_reload(own: Move) -> None:
    shown = run(own, "reload")
    assert re.match(r"generation 2 active: 4 users .*\([\d.]+ ms\)\n", " ".join(shown.out.split("\n    "))), shown.out
    assert run(own, "reload", "--json").document["generation"] == 3
    own.proxy.config["config"]["permissions"] = "0666"
    own.proxy.write_config()
    assert "config.permissions takes effect at the next start only" in run(own, "reload").error


def test_a_refused_reload_says_all_that_is_wrong(own: Move) -> None:
    own.proxy.config["users"].update({"x": "nowhere", "y": "nowhere"})
    own.proxy.write_config()
    refused = run(own, "reload")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.count(f"{own.proxy.config_path}:") == 2 and "users.y: there is no backend" in refused.err
    document = run(own, "--json", "reload").document
    assert len(document["errors"]) == 2 and document["status"] == 1 and document["error"]
    warned = run(own, "status")
    assert "differs from what runs" in warned.out.replace("\n    ", " ") and "last reload was refused" in warned.out
    assert warned.status == 0
    # The edit that is to be drained is not in force.
    drained = run(own, "drain", "x")
    assert drained.status == 1 and drained.err.count("there is no backend") == 2 and "refused" in drained.error
    del own.proxy.config["users"]["x"], own.proxy.config["users"]["y"]
    own.proxy.write_config()
    assert run(own, "reload").status == 0 and run(own, "drain", "alice@example.org").status == 0


def test_drain_with_nothing_in_flight(shared: Move) -> None:
    assert run(shared, "drain", "alice@example.org").out == "alice@example.org: on old, nothing in flight\n"
    several = run(shared, "drain", "alice@example.org", "carol@example.org", "new@example.com", LONG)
    assert "carol@example.org: on reject\nnew@example.com: on old\n" in several.out
    assert several.out.endswith("nothing in flight\n")
    assert run(shared, "drain", "--all").out == "all users: nothing in flight\n"
    many = run(shared, "drain", *(f"u{number}" for number in range(1500)))
    assert many.out == "1,500 users: nothing in flight\n"
    document = run(shared, "drain", "--json", "bob@example.org").document
    assert document["done"] is True and document["routes"] == {"bob@example.org": "new"}


def test_drain_after_a_bare_edit_and_signal_waits_for_that_reload(own: Move) -> None:
    own.proxy.config["users"]["alice@example.org"] = "new"
    own.proxy.write_config()
    own.proxy.signal(signal.SIGUSR1)
    assert run(own, "drain", "alice@example.org").out.startswith("alice@example.org: on new, nothing in flight")


def test_drain_waits_and_says_for_what(own: Move) -> None:
    go = threading.Event()
    delivery = in_flight(own, "alice@example.org", go)
    began = time.monotonic()
    process = start_ctl("-c", own.proxy.config_path, "drain", "alice@example.org")
    own.proxy.wait_log("control: drain alice")
    time.sleep(1.8)
    inflight = run(own, "inflight")
    assert re.search(r"^alice@example\.org +old +final dot +\d\.\d s +\d+ B$", inflight.out, re.MULTILINE), inflight.out
    assert run(own, "drain", "bob@example.org").out == "bob@example.org: on new, nothing in flight\n"
    go.set()
    ended = end_ctl(process, began)
    delivery.join()
    assert ended.status == 0
    assert re.fullmatch(r"alice@example\.org: on old, waited \d+\.\d s for 1 delivery\n", ended.out), ended.out
    waiting = " ".join(line.strip() for line in ended.err.splitlines())
    waits = r"waiting for 1 delivery to old\[.*\]: alice@example\.org from <s@x>, dot sent, under way for \d"
    assert re.match(waits, waiting), ended.err


def test_drain_gives_up_in_time(own: Move) -> None:
    go = threading.Event()
    delivery = in_flight(own, LONG, go)
    late = run(own, "drain", "--all", "--timeout", "0.3")
    assert late.status == 3 and "1 delivery still in flight after" in late.out and "not all is quiet" in late.error
    assert run(own, "drain", "--timeout", "0", LONG).status == 3
    document = run(own, "--json", "drain", "--timeout", "0", LONG).document
    assert document["done"] is False and len(document["waiting"]) == 1 and document["status"] == 3
    go.set()
    delivery.join()


def test_an_interrupted_drain_says_what_is_so(own: Move) -> None:
    go = threading.Event()
    delivery = in_flight(own, "alice@example.org", go)
    began = time.monotonic()
    process = start_ctl("-c", own.proxy.config_path, "drain", "alice@example.org")
    own.proxy.wait_log("control: drain alice")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    ended = end_ctl(process, began)
    assert ended.status == 130
    assert ended.error == "nothing was changed; interrupted while waiting for 1 delivery"
    go.set()
    delivery.join()


def test_uncertain_deliveries_are_reported_and_outlive_the_process(own: Move) -> None:
    assert run(own, "uncertain").out == "no uncertain deliveries\n"
    own.old.script = Script(final=(Close(),))
    with own.proxy.client() as client:
        assert client.deliver("s@x", [LONG], b"Message-ID: <1@x>\r\n\r\nx\r\n").verdict(0).code == 451
        client.quit()
    drained = run(own, "drain", LONG)
    assert drained.status == 2, drained
    for part in ("1 uncertain delivery", "Message-ID <1@x>", "from <s@x>", "look there for the Message-ID"):
        assert part in " ".join(drained.out.split()), drained.out
    assert run(own, "drain", "alice@example.org").status == 0
    listed = run(own, "uncertain")
    assert listed.status == 0 and "Message-ID <1@x>" in listed.out and not listed.err
    assert run(own, "uncertain", LONG.upper()).out == listed.out
    assert run(own, "uncertain", LONG.split("+")[0] + "@" + LONG.split("@")[1]).out == listed.out
    assert run(own, "uncertain", "bob@example.org").out == "no uncertain deliveries\n"
    [record] = run(own, "uncertain", "--json").document["uncertain"]
    assert record["message_id"] == "<1@x>" and record["backend"] == "old"
    own.proxy.stop()
    later = run(own, "uncertain")
    assert later.out == listed.out and "is lmtp-proxy running?" in later.err and later.status == 0
    with open(f"{own.proxy.directory}/uncertain", "ab") as log:
        log.write(b'{"half')
    assert "lines that are no record: 1" in run(own, "uncertain").err


def test_uncertain_deliveries_without_a_log_or_with_an_unreadable_one() -> None:
    answer: dict[str, Any] = {"log": None, "uncertain": []}
    with FakeControl({"GET /uncertain": [http(200, answer), http(200, {**answer, "log": "/tmp"})]}) as fake:
        assert "config.uncertain_log is not set" in ctl("--socket", fake.path, "uncertain").error
        unreadable = ctl("--socket", fake.path, "uncertain")
        assert "/tmp: cannot be read" in unreadable.error and "remembers" in unreadable.error
        assert unreadable.status == 0


def test_sessions_and_backends(shared: Move) -> None:
    with shared.proxy.client() as client:
        client.envelope(f"{LONG}", ["alice@example.org"])
        shown = run(shared, "sessions")
        assert len(shown.out.splitlines()) == 2 and "..." in shown.out, shown.out
        assert run(shared, "sessions", "--json").document["sessions"][0]["recipients"] == 1
        client.send(b"x\r\n.\r\n")
        client.reply()
        client.quit()
    shown = run(shared, "backends")
    assert re.search(r"^old +up +0/20 +2 +1 +0 +0 +0$", shown.out, re.MULTILINE), shown.out
    assert shared.old.path in shown.out
    assert [each["name"] for each in run(shared, "backends", "--json").document["backends"]] == ["old", "new"]


def test_check(shared: Move, tmp_path: Path) -> None:
    same = run(shared, "check")
    assert (same.status, same.err) == (0, "") and "no difference to what runs" in " ".join(same.out.split())
    text = Path(shared.proxy.config_path).read_text()
    other = tmp_path / "other.yml"
    other.write_text(text.replace('"alice@example.org": old', '"alice@example.org": new\n  "dave@example.org": hold'))
    shown = ctl("-c", shared.proxy.config_path, "check", "other.yml", cwd=tmp_path)
    assert "1 user moved from old to new: alice@example.org\n" in shown.out, shown.out
    assert "1 user added on hold: dave@example.org\n" in shown.out
    other.write_text(text.replace("old\n", "odl\n") + "bogus: 1\n")
    wrong = run(shared, "check", str(other))
    assert (wrong.status, wrong.out) == (1, "") and wrong.err.count(f"{other}:") >= 4, wrong.err
    assert len(run(shared, "check", "--json", str(other)).document["errors"]) >= 3


# --- arguments -------------------------------------------------------------------------------------------------------


def test_the_help_has_the_exit_statuses_and_what_is_waited_for() -> None:
    shown = ctl("--help")
    assert shown.status == 0
    for status in ("0  ", "1  ", "2  ", "3  ", "64 ", "130"):
        assert re.search(rf"^  {status}  ?\w", shown.out, re.MULTILINE), shown.out
    for verb in VERBS:
        assert f"\n    {verb}" in shown.out
        text = ctl(verb, "--help").out
        assert re.search(r"\bWaits (for|until)|waits for", " ".join(text.split())), text


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["bogus"], ["status", "more"], ["lookup"], ["lookup", ""], ["drain"], ["drain", "--all", "a"],
        ["drain", "a", "--timeout", "soon"], ["drain", "a", "--timeout", "-1"], ["drain", "a", "--timeout", "nan"],
        ["move"], ["move", "new"], ["move", "--file", "-", "a", "new"], ["move", "a\nb", "new"], ["move", "", "new"],
        ["move", "a", "new", "--bogus"], ["--bogus", "status"], ["check", "a", "b"], ["-c"], ["move", "a\udcff", "new"],
    ],
)  # fmt: skip
def test_wrong_arguments_have_a_status_of_their_own(arguments: list[str]) -> None:
    wrong = ctl(*arguments)
    assert (wrong.status, wrong.out) == (64, "")
    assert len(wrong.err.splitlines()) == 1 and "--help" in wrong.err, wrong.err
    document = ctl("--json", *arguments).document
    assert document["status"] == 64 and document["error"]


def test_the_version() -> None:
    assert re.fullmatch(r"lmtp-proxyctl \d+\.\d+\.\d+\n", ctl("--version").out)


# --- the way to the socket -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("config:\n  socket: /s\n", "config.control: is not set, so the running proxy has no control socket"),
        ("", "config.control: is not set"),
        ("config: [\n", "c.yml:2: is not YAML"),
        ("config:\n  control: {socket: /nowhere/ctl}\n", "/nowhere/ctl: there is no such socket; is lmtp-proxy"),
        ("config:\n  x: &a /nowhere/a\n  control: {socket: *a}\nusers: [", "/nowhere/a: there is no such socket"),
        ("x: &a {socket: /nowhere/b}\nconfig:\n  control: *a\n", "/nowhere/b: there is no such socket"),
        ("x: &a {control: {socket: /nowhere/c}}\nconfig:\n  <<: *a\n  socket: /s\n",
         "/nowhere/c: there is no such socket"),
        ("x: &a {config: {control: {socket: /nowhere/d}}}\n<<: *a\n", "/nowhere/d: there is no such socket"),
        ("users: {a: b, c: [control, {socket: x}]}\nconfig:\n  timeouts: {socket: /no}\n  control:\n    socket: /n/c\n",
         "/n/c: there is no such socket"),
        ("config:\n  control: {socket: '" + "/n" * 100 + "'}\n", "cannot connect"),
    ],
)  # fmt: skip
def test_the_configuration_leads_to_the_socket(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(text)
    failed = ctl("-c", str(tmp_path / "c.yml"), "status")
    assert failed.status == 1 and len(failed.err.splitlines()) == 1 and message in failed.error, failed.err


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        failed = ctl("status", "-c", str(path))
        assert failed.status == 1 and why in failed.error and "--socket" in failed.error
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    assert "is not YAML" in ctl("status", "-c", str(tmp_path / "bytes")).error


def test_the_rest_of_the_file_need_not_be_whole(shared: Move, tmp_path: Path) -> None:
    text = Path(shared.proxy.config_path).read_text()
    (tmp_path / "c.yml").write_text(text + "  broken: [\n")
    assert ctl("status", "-c", str(tmp_path / "c.yml")).status == 0


def test_a_dead_proxy_is_called_dead(own: Move) -> None:
    own.proxy.signal(signal.SIGKILL)
    own.proxy.wait()
    for verb in (["status"], ["drain", "--all"], ["move", "alice@example.org", "new"], ["check", "/x"], ["reload"]):
        failed = run(own, *verb)
        assert failed.status == 1 and "nobody listens there; is lmtp-proxy running?" in failed.error
        assert json.loads(run(own, "--json", *verb).out)["status"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_is_said_to_who_may_not() -> None:
    with FakeControl({"GET /status": [http(200, {})]}) as fake:
        os.chmod(fake.directory, 0o755)
        said = []
        for mode in (0o600, 0o660):
            os.chmod(fake.path, mode)
            groups = os.getgroups()
            os.setgroups([])
            os.setegid(65534)
            os.seteuid(65534)
            try:
                with pytest.raises(ControlError) as caught:
                    ControlClient(fake.path).get("/status")
            finally:
                os.seteuid(0)
                os.setegid(0)
                os.setgroups(groups)
            said.append(str(caught.value))
    assert said[0] == f"{fake.path}: permission denied: run as root"
    assert said[1] == f"{fake.path}: permission denied: run as root or as a member of root"


def test_what_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "ctl"):
        assert "is not a control socket" in ctl("--socket", str(path), "status").error


def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)

        def serve() -> None:
            time.sleep(0.3)
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ControlError, match="broke without an answer"):
            ControlClient(path).get("/status")
        thread.join()


# --- odd answers -----------------------------------------------------------------------------------------------------


def pieces(*parts: bytes, gap: float = 0.02) -> Answer:
    def send(connection: socket.socket, _: Any) -> None:
        for part in parts:
            connection.sendall(part)
            time.sleep(gap)

    return send


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 12\r\n\r\n" + b'{"errors":1}',
        HEAD + b"content-LENGTH:12  \r\nX: y\r\n\r\n" + b'{"errors":1}' + b"rest",
        HEAD + b"\r\n" + b'{"errors":1}',
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\n" + b'{"errors":1}',
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\n{\"e\r\n9\r\nrrors\":1}\r\n0\r\n\r\n",
        pieces(*(bytes([octet]) for octet in HEAD + b"Content-Length: 12\r\n\r\n" + b'{"errors":1}'), gap=0),
        pieces(HEAD + b"Transfer-Encoding: Chunked\r\n\r\nC\r", b'\n{"errors":', b"1}\r\n0", b"\r\n\r\n"),
    ],
)  # fmt: skip
def test_all_forms_of_http_are_read(answer: Answer) -> None:
    with FakeControl({"GET /x": [answer]}) as fake:
        assert ControlClient(fake.path).get("/x").document == {"errors": 1}


ODD: list[tuple[str, Answer]] = [
    ("closed", pieces()),
    ("garbage", b"220 fake LMTP ready\r\n"),
    ("half a head", HEAD + b"Content-Le"),
    ("half a body", HEAD + b"Content-Length: 100\r\n\r\n{"),
    ("negative length", HEAD + b"Content-Length: -1\r\n\r\n{}"),
    ("huge length", HEAD + b"Content-Length: 99999999999\r\n\r\n{}"),
    ("bad chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    ("huge chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"),
    ("chunk without end", HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx"),
    ("no JSON", http(200, {})[:-2] + b"no"),
    ("deep JSON", HEAD + b"\r\n" + b"[" * 100000),
    ("a list", http(200, [1])),
    ("another shape", http(200, {"config": 1})),
    ("500", http(500, {"error": "internal error: \x1b[2J"})),
    ("503", http(503, {"error": "busy"})),
    ("404 in HTML", b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>"),
    ("error is no text", http(400, {"error": {}})),
]


@pytest.mark.parametrize("answer", [answer for _, answer in ODD], ids=[name for name, _ in ODD])
def test_an_odd_answer_is_one_line(answer: Answer) -> None:
    names = [f"GET /{name}" for name in ("status", "lookup", "inflight", "sessions", "backends", "uncertain")]
    with FakeControl({name: [answer] for name in [*names, "POST /reload", "POST /check"]}) as fake:
        for verb in (["status"], ["reload"], ["lookup", "a@b"], ["check", "/x"], ["move", "a", "b"], ["uncertain"]):
            failed = ctl("--socket", fake.path, *verb)
            assert (failed.status, failed.out) == (1, ""), failed
            assert len(failed.err.splitlines()) == 1 and failed.error.isprintable(), failed.err


@pytest.mark.parametrize("start", [b"", b"Transfer-Encoding: chunked\r\n\r\n", b"\r\n"])
def test_an_endless_answer_is_cut_off(start: bytes) -> None:
    sent = [0]

    def flood(connection: socket.socket, _: Any) -> None:
        connection.sendall(HEAD + start)
        while sent[0] < 200 * 2**20:
            connection.sendall(b"1" * 65536)
            sent[0] += 65536

    with FakeControl({"GET /x": [flood]}) as fake, pytest.raises(ControlError, match="an answer that is too long"):
        ControlClient(fake.path).get("/x")
    assert sent[0] < (80 * 2**20 if start == b"\r\n" else 2**20)


def test_a_silent_peer_is_given_up() -> None:
    with FakeControl({"GET /x": [pieces(b"HTTP/1.1", gap=12)]}) as fake:
        began = time.monotonic()
        with pytest.raises(ControlError, match=r"no answer to GET /x within 0 s; does lmtp-proxy hang\?"):
            ControlClient(fake.path).get("/x?y=z", timeout=0.3)
        assert time.monotonic() - began < 10


def test_a_slow_reload_is_waited_for_and_says_so() -> None:
    answer = {"generation": 2, "changes": "none", "seconds": 2.5, "restart": []}

    def slow(connection: socket.socket, _: Any) -> None:
        time.sleep(2.5)
        connection.sendall(http(200, answer))

    with FakeControl({"POST /reload": [slow]}) as fake:
        ended = ctl("--socket", fake.path, "reload")
    assert ended.out == "generation 2 active: none (2.5 s)\n"
    assert ended.err == "waiting for the reload\n"


DRAINED: dict[str, Any] = {
    "done": False, "instance": "one", "generation": 2, "until": 7, "waited": 0.0, "waiting": [], "uncertain": [],
    "routes": {"a": "new"}, "reload": None, "after_crash": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "answer, message",
    [
        (pieces(), "broke without an answer"),
        (http(200, {**DRAINED, "instance": "two", "done": True}), "was restarted meanwhile"),
        (b"nonsense", "not HTTP"),
        (http(200, {**DRAINED, "waiting": [{}]}), "no usable `number`"),
    ],
    ids=["dies", "restarts", "garbage", "shape"],
)
def test_a_drain_whose_proxy_goes_away_proves_nothing(answer: Answer, message: str) -> None:
    status = http(200, {"instance": "one"})
    with FakeControl({"GET /status": [status], "POST /drain": [http(200, DRAINED), answer]}) as fake:
        failed = ctl("--socket", fake.path, "drain", "a")
        assert failed.status == 3 and message in failed.error and "old store" in failed.error, failed
        assert len(failed.err.splitlines()) == 1
        first, second = fake.bodies("POST /drain")
    assert first == {"users": ["a"], "timeout": 0.0}
    assert second["until"] == 7, "what comes after the first answer is not waited for"


def test_a_drain_goes_on_with_the_first_until() -> None:
    flight = {"number": 5, "session": "s", "backend": "old", "address": "/x", "recipients": ["a"], "count": 1,
              "sender": "", "phase": "commit", "seconds": 0.1, "octets": 1}  # fmt: skip
    steps = [http(200, {**DRAINED, "waiting": [flight]}), http(200, {**DRAINED, "done": True})]
    with FakeControl({"GET /status": [http(200, {"instance": "one"})], "POST /drain": steps}) as fake:
        ended = ctl("--socket", fake.path, "drain", "a")
        assert re.fullmatch(r"a: on new, waited \d[\d.]* m?s for 1 delivery\n", ended.out), ended.out
        assert fake.bodies("POST /drain")[1] == {"users": ["a"], "timeout": 1.0, "until": 7}


# --- streams ---------------------------------------------------------------------------------------------------------


def test_streams_that_nobody_reads_make_no_noise(shared: Move) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        ended = end_ctl(start_ctl("-c", shared.proxy.config_path, "status", stdout=closed), 0)
    assert (ended.status, ended.err) == (0, "")
    # And with none at all: what a script prints must not end in a file that took the number of a closed stream.
    for script in ('"$@" >&-', '"$@" 2>&- <&-', '"$@" >&- 2>&- <&-'):
        arguments = ["sh", "-c", script, "sh", sys.executable, str(PROGRAM), "-c", shared.proxy.config_path, "status"]
        without = subprocess.run(arguments, capture_output=True, timeout=30, check=False)
        assert (without.returncode, without.stderr) == (0, b"")


ENDS = [  # what each ends with, whoever reads what it says
    (["status"], 0),
    (["--json", "status"], 0),
    (["lookup", "<alice"], 1),
    (["--json", "lookup", "<alice"], 1),
    (["drain", "--timeout", "x", "alice@example.org"], 64),
    (["--json", "drain"], 64),
    (["--help"], 0),
    (["move", "--help"], 0),
    (["--version"], 0),
]


@pytest.mark.parametrize(
    "arguments, status", ENDS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_the_status_is_the_verbs_own_whoever_reads_its_streams(shared: Move, arguments: list[str], status: int) -> None:
    program = [sys.executable, str(PROGRAM), "-c", shared.proxy.config_path, *arguments]
    for streams in ({"stdout"}, {"stderr"}, {"stdout", "stderr"}):
        read, write = os.pipe()
        os.close(read)
        pipes: dict[str, int] = {name: write if name in streams else subprocess.PIPE for name in ("stdout", "stderr")}
        ended = subprocess.run(program, **pipes, timeout=30, check=False)  # type: ignore[call-overload]
        os.close(write)
        assert ended.returncode == status, (streams, ended)
        assert not {b"Traceback", b"BrokenPipe"} & set(re.findall(rb"Traceback|BrokenPipe", ended.stderr or b""))
        if status == 0:
            assert not ended.stderr


@pytest.mark.parametrize(
    "arguments, status", ENDS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_full_disk_is_one_line_and_a_status_of_its_own(shared: Move, arguments: list[str], status: int) -> None:
    with open("/dev/full", "w") as full:
        ended = end_ctl(start_ctl("-c", shared.proxy.config_path, *arguments, stdout=full), 0)
        deaf = subprocess.run(
            [sys.executable, str(PROGRAM), "-c", shared.proxy.config_path, *arguments],
            stdout=full, stderr=full, timeout=30, check=False,
        )  # fmt: skip
    assert ended.status == deaf.returncode == (status or 74)
    assert ended.err.count("\n") == 1
    if not status:
        assert ended.error == "the output could not be written: No space left on device"


@pytest.mark.parametrize("option", ["--check", "--help", "--version"])
def test_streams_of_lmtp_proxy_that_nobody_reads(shared: Move, option: str) -> None:
    program = [sys.executable, str(PROGRAM.parent / "lmtp-proxy"), "-c", shared.proxy.config_path, option]
    read, write = os.pipe()
    os.close(read)
    unread = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, timeout=30, check=False)
    neither = subprocess.run(program, stdout=write, stderr=write, timeout=30, check=False)
    os.close(write)
    assert (unread.returncode, unread.stderr, neither.returncode) == (0, b"", 0)
    with open("/dev/full", "w") as full:
        ended = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, timeout=30, check=False)
    line = b"lmtp-proxy: the output could not be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (74, line)


def test_a_reader_that_takes_nothing_is_left_by_an_interrupt(shared: Move) -> None:
    """A pager that waits, say, with the pipe full: no traceback, and no wait for the same reader at the end."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    began = time.monotonic()
    with os.fdopen(write, "w") as full:
        process = start_ctl("-c", shared.proxy.config_path, "status", stdout=full)
    while not Path(f"/proc/{process.pid}/syscall").read_text().startswith("1 0x1 "):  # write(1, ...)
        assert process.poll() is None and time.monotonic() < began + 20
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    ended = end_ctl(process, began, timeout=20)
    os.close(read)
    assert (ended.status, ended.err) == (130, "")


def test_a_terminal_without_unicode() -> None:
    answer = {"in_flight": [{"number": 5, "session": "s", "backend": "old", "address": "/x", "recipients": ["ü漢@x"],
              "count": 1, "sender": "", "phase": "commit", "seconds": 0.1, "octets": 1}]}  # fmt: skip
    with FakeControl({"GET /inflight": [http(200, answer)]}) as fake:
        plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
        ended = ctl("--socket", fake.path, "inflight", environment=plain)
    assert ended.status == 0 and "\\xfc\\u6f22@x" in ended.out


@pytest.mark.parametrize(
    ("verb", "said"),
    [("stauts", "there is no verb stauts, did you mean status?"), ("xyzzy", "there is no verb xyzzy")],
)
def test_a_verb_that_is_nearly_one(verb: str, said: str) -> None:
    done = ctl(verb)
    assert (done.status, done.error) == (64, f"{said}; see lmtp-proxyctl --help")
    assert ctl("--json", verb).document["error"] == said


def test_the_configuration_in_force() -> None:
    with FakeBackend() as store, controlled({"old": store}, {"alice": "old"}, max_clients=77) as proxy:
        socket = str(proxy.config["config"]["control"]["socket"])  # type: ignore[index]
        done = ctl("--socket", socket, "config")
        assert done.status == 0 and not done.err
        lines = done.out.splitlines()
        assert {"config.max_clients: 77", "config.max_recipients: 1000", "config.smtputf8: true"} <= {*lines}
        assert f"config.socket: {proxy.address}" in lines and "backends.old.timeouts.connect: 10" in lines
        assert "alice" not in done.out
        document = ctl("--socket", socket, "--json", "config").document
        assert document["config"]["max_clients"] == 77 and document["path"] == proxy.config_path
        proxy.config["config"]["max_clients"] = 78
        proxy.write_config()
        assert "config.max_clients: 77" in ctl("--socket", socket, "config").out, "what is in force, not the file"
        assert f"listens on  {proxy.address}" in ctl("--socket", socket, "status").out.splitlines()
