# SPDX-License-Identifier: GPL-3.0-or-later
"""What backends did to the proxy in an attack on it: each of these once hurt others, the log or a deadline."""

from __future__ import annotations

import base64
import re
import signal
import threading
import time

from tests.faults.conftest import Pair
from tests.support.backend import FakeBackend
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import Await, BodyTrigger, Hang, Script, Stall, raw, say


def test_a_reply_line_of_almost_the_limit_and_a_bare_lf_hurts_nobody_else(pair: Pair) -> None:
    for length in (4089, 4090, 4091, 4092):
        pair.a.script = Script(final=raw(b"250 " + b"x" * length + b"\n"))
        with pair.proxy.client() as client:
            outcome = client.deliver("s@x", ["u@a", "v@b"])
            assert outcome.verdict(1).text == "250 2.0.0 stored"
            assert outcome.verdict(0).code in (250, 451)
            client.quit()


def test_replies_cannot_fill_the_memory(pair: Pair) -> None:
    before = pair.proxy.status("VmHWM")
    line = b"x" * 4000
    pair.a.script = Script(rcpt=raw((b"550-" + line + b"\r\n") * 150 + b"550 " + line + b"\r\n"))
    with pair.proxy.client() as client:
        outcome = client.envelope("s@x", [*(f"u{number}@a" for number in range(100)), "v@b"])
        assert [reply.text[:9] for reply in outcome.rcpts[:100]] == ["451 4.3.0"] * 100
        assert outcome.rcpts[100].positive
    assert pair.proxy.status("VmHWM") - before < 4 << 20


def test_no_reply_writes_log_lines_of_its_own(pair: Pair) -> None:
    since = pair.proxy.mark()
    forged = "deadbeef: from=<s@x>, to=<ceo@x>, status=sent (250 2.0.0 forged)"
    pair.a.script = Script(lhlo=say("550-go away", f"550-{forged}", "550 \x1b[2J\x7fend"))
    with pair.proxy.client() as client:
        assert client.envelope("s@x", ["u@a"]).rcpts[0].text.startswith("451 4.3.0")
        client.quit()
    pair.proxy.wait_log("to=<u@a>", since=since)
    for line in pair.proxy.log().splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", line), line
        assert line.isprintable()


def test_a_password_that_the_backend_repeats_is_not_logged() -> None:
    secret = "correct horse battery"
    repeated = base64.b64encode(f"\0me\0{secret}".encode()).decode()
    script = Script(offer=("PIPELINING", "AUTH PLAIN"), auth=say(f"501 5.5.4 bad command: AUTH PLAIN {repeated}"))
    with FakeBackend(script) as backend:
        config = config_of({"a": backend})
        config["backends"]["a"] = {**backend.config, "user": "me", "password": secret}
        with ProxyProcess(config) as proxy:
            with proxy.client() as client:
                assert client.envelope("s@x", ["u@a"]).rcpts[0].text.startswith("451 4.7.0")
                client.quit()
            proxy.wait_log("to=<u@a>")
            log = proxy.log()
    assert "501" in log
    assert repeated not in log
    assert secret not in log


def test_a_backend_has_its_own_deadline_for_the_final_reply() -> None:
    with FakeBackend(Script(final=(Hang(),))) as backend:
        config = config_of({"a": backend}, timeouts={"final_reply": 20})
        config["backends"]["a"] = {**backend.config, "timeouts": {"final_reply": 0.5}}
        with ProxyProcess(config) as proxy, proxy.client() as client:
            began = time.monotonic()
            assert client.deliver("s@x", ["u@a"]).verdict(0).text.startswith("451 4.4.2")
            assert time.monotonic() - began < 3
            client.quit()


def test_the_final_reply_counts_from_the_dot_that_waits_behind_a_stalled_backend() -> None:
    """The client has written all: its patience runs while the backend, and so the proxy, takes in nothing."""
    script = Script(body=BodyTrigger(1000, (Stall(2.0),)), final=(Hang(),))
    with FakeBackend(script) as backend:
        config = config_of({"a": backend}, timeouts={"final_reply": 3, "data_write": 10})
        with ProxyProcess(config) as proxy, proxy.client() as client:
            outcome = client.envelope("s@x", ["u@a"])
            client.send((b"x" * 78 + b"\r\n") * 4000 + b".\r\n")
            began = time.monotonic()
            client.finals(outcome)
            took = time.monotonic() - began
            assert outcome.verdict(0).text.startswith("451 4.4.2")
            assert took < 4.0, f"answered {took:.1f} s after the client's dot, {3} were allowed"
            client.quit()


def test_a_client_that_reads_slowly_gets_its_final_replies_although_the_proxy_stops() -> None:
    go = threading.Event()
    script = Script(final=(Await(go), *say("250 2.0.0 " + "x" * 1000)))
    with FakeBackend(script) as backend, ProxyProcess(config_of({"a": backend})) as proxy, proxy.client() as client:
        outcome = client.envelope("s@x", [f"u{number}@a" for number in range(600)])
        client.send(b"x\r\n.\r\n")
        assert backend.wait_for(lambda: bool(backend.transactions()) and backend.transactions()[0].dotted, 5)
        proxy.signal(signal.SIGTERM)
        time.sleep(0.2)
        go.set()
        time.sleep(2.0)
        client.finals(outcome)
        assert all(outcome.verdict(position).positive for position in range(600))
        assert client.reply().code == 421
        assert proxy.wait(5) == 0


def test_a_host_name_that_cannot_be_is_a_failed_connect() -> None:
    with FakeBackend() as backend:
        config = config_of({"a": backend}, {"@a": "a", "@n": "nowhere"})
        config["backends"]["nowhere"] = {"host": "x" * 64 + ".test", "port": 24}
        with ProxyProcess(config) as proxy, proxy.client() as client:
            outcome = client.deliver("s@x", ["u@n", "u@a"])
            assert outcome.rcpts[0].text.startswith("451 4.4.1")
            assert outcome.verdict(1).positive
            client.quit()
