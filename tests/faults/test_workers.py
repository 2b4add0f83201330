"""A proxy of two workers is one proxy: also when one of them, or the process that watches them, dies or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1
from typing import Any

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import Disconnected, LmtpClient
from tests.support.ctl import Run, controlled, ctl, end_ctl, start_ctl
from tests.support.http import add_metrics
from tests.support.proxy import ProxyProcess
from tests.support.script import Await, Close, Pause, Script, say

ALICE, BOB = "alice@example.org", "bob@example.org"


@dataclass
class Site:
    """Two stores and a proxy of two workers; alice and bob are on the old one."""

    old: FakeBackend
    new: FakeBackend
    proxy: ProxyProcess

    def ctl(self, *arguments: str) -> Run:
        return ctl("-c", self.proxy.config_path, *arguments)

    def start_ctl(self, *arguments: str) -> subprocess.Popen[str]:
        return start_ctl("-c", self.proxy.config_path, *arguments)

    def set_backend(self, name: str, **keys: object) -> None:
        self.proxy.config["backends"][name] = {**getattr(self, name).config, **keys}
        self.proxy.write_config()

    @property
    def status(self) -> Any:
        return self.ctl("--json", "status").document

    @property
    def flights(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ctl("--json", "inflight").document["in_flight"]
        return found

    def wait_for_workers(self, but: int = 0, count: int = 2) -> list[int]:
        """The pids of the workers, when so many serve; none of them is `but`."""

        def serving() -> list[int]:
            try:
                rows = self.status["workers"]
            except ValueError:  # nobody answers just now
                return []
            return [row["pid"] for row in rows if row["state"] == "serving" and row["pid"] != but]

        assert eventually(lambda: len(serving()) == count), self.proxy.log()
        return serving()

    def dots(self, backend: FakeBackend, user: str = ALICE) -> list[float]:
        return [
            seen.dot_at or 0.0
            for seen in backend.transactions()
            if seen.dotted and any(recipient.path == user for recipient in seen.recipients)
        ]

    def send_dot(self, sender: str = "s@x") -> tuple[LmtpClient, int]:
        """A client whose message for alice waits for the old store's reply, and the worker that has it."""
        client = self.proxy.client(timeout=20)
        outcome = client.envelope(sender, [ALICE])
        client.send(b"Subject: x\r\nMessage-ID: <" + sender.encode() + b">\r\n\r\n.\r\n")
        assert outcome.rcpts[0].positive
        assert self.old.wait_for(lambda: any(seen.dotted for seen in self.old.transactions(sender)))
        return client, next(flight["worker"] for flight in self.flights if flight["sender"] == sender)

    @contextmanager
    def dots_in_both(self) -> Iterator[dict[int, LmtpClient]]:
        """For each worker a client whose message waits for the old store's reply."""
        with ExitStack() as stack:
            found: dict[int, LmtpClient] = {}
            for number in range(100):
                client, worker = self.send_dot(f"{number}@x")
                stack.callback(client.close)
                found.setdefault(worker, client)
                if len(found) == 2:
                    break
            assert len(found) == 2, "one worker gets all the mail"
            yield found


@pytest.fixture
def site() -> Iterator[Site]:
    with FakeBackend() as old, FakeBackend() as new:
        backends = {"old": old, "new": new}
        proxy = controlled(backends, {ALICE: "old", BOB: "old"}, workers=2, timeouts={"shutdown": 8})
        proxy.workers = 2
        site = Site(old, new, proxy)
        # One worker may get many messages before the other gets its first.
        site.set_backend("old", max_connections=200, max_per_user=200)
        with proxy:
            yield site


def eventually(condition: Callable[[], bool], timeout: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def ended(pid: int) -> bool:
    """It runs no more; nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Load:
    """Clients that send to `user` as Postfix would: again until it is taken, on a new connection if need be."""

    def __init__(self, site: Site, user: str = BOB, clients: int = 4) -> None:
        self.accepted: list[str] = []
        self.odd: list[str] = []
        self._site = site
        self._user = user
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._deliver, args=(number,)) for number in range(clients)]

    def _deliver(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            sender = f"{number}.{count}@load"
            try:
                with self._site.proxy.client() as client:
                    while not self._stop.is_set():
                        sender = f"{number}.{count}@load"
                        said = client.deliver(sender, [self._user]).verdict(0)
                        if said.positive:
                            self.accepted.append(sender)
                            count += 1
                        elif said.code // 100 != 4:
                            self.odd.append(said.text)
                    client.quit()
            except (OSError, Disconnected):
                time.sleep(0.02)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self, *stores: FakeBackend) -> None:
        """What was accepted is in a store, and nobody heard a 5xx."""
        stored = {seen.sender for store in stores for seen in store.transactions() if seen.dotted}
        assert self.odd == []
        assert len(self.accepted) > 20
        assert not [sender for sender in self.accepted if sender not in stored]


# --- a worker dies ----------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_under_load_loses_nothing_and_comes_back(site: Site) -> None:
    with Load(site) as load:
        for _ in range(3):
            first, second = site.wait_for_workers()
            time.sleep(0.2)
            os.kill(first, SIGKILL)
            assert second in site.wait_for_workers(but=first)
        time.sleep(0.2)
    load.check(site.old)
    site.proxy.wait_log(rf"worker 1 \(pid {first}\) ended: signal 9 \(SIGKILL\); it is started again in ")
    status = site.status
    assert sum(row["restarts"] for row in status["workers"]) == 3
    assert status["after_crash"]["worker"] == first and f"worker process {first} died" in site.ctl("status").out


def test_a_drain_whose_worker_is_killed_claims_nothing(site: Site) -> None:
    go = threading.Event()
    site.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    client, worker = site.send_dot()
    began = time.monotonic()
    drain = site.start_ctl("drain", ALICE)
    site.proxy.wait_log(f"control: drain {ALICE}")
    time.sleep(0.7)
    assert drain.poll() is None
    os.kill(worker, SIGKILL)
    run = end_ctl(drain, began)
    go.set()
    client.close()
    assert run.status == 2 and f"worker process {worker} died" in run.out, run
    # For whoever comes later, too; and moves say the same.
    assert site.ctl("drain", BOB).status == 2
    assert site.ctl("move", ALICE, "new").status == 2


def test_a_worker_that_is_told_to_end_leaves_no_doubt(site: Site) -> None:
    go = threading.Event()
    site.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    client, worker = site.send_dot()
    os.kill(worker, SIGTERM)
    site.proxy.wait_log(rf"\[{worker}\] stopping: 1 sessions? ha(s|ve) a transaction to finish")
    go.set()
    assert client.reply().positive
    client.close()
    site.proxy.wait_log(rf"pid {worker}\) ended: exit status 0")
    site.wait_for_workers(but=worker)
    assert site.ctl("drain", ALICE).status == 0
    # Signals that are for the supervisor, sent to all processes of the name.
    for pid in site.wait_for_workers():
        os.kill(pid, SIGUSR1)
        os.kill(pid, SIGHUP)
    time.sleep(0.2)
    assert site.status["generation"] == 1


def test_a_worker_that_dies_while_the_file_is_broken_is_missed_until_it_is_mended(site: Site) -> None:
    text = Path(site.proxy.config_path).read_text()
    first, second = site.wait_for_workers()
    site.proxy.write_config(text.replace('": old', '": odl'))
    since = site.proxy.mark()
    os.kill(first, SIGKILL)
    site.proxy.wait_log(r"worker 1 \(pid \d+\) cannot serve: .*c\.yml:\d+: users\.alice@.*: .*odl", since=since)
    assert site.wait_for_workers(count=1) == [second]
    assert site.ctl("reload").status == 1
    for _ in range(3):  # the other one serves
        with site.proxy.client() as client:
            assert client.deliver("s@x", [ALICE]).verdict(0).positive
            client.quit()
    site.proxy.write_config(text)
    site.wait_for_workers()


def test_a_worker_that_finds_another_file_has_all_reload_it(site: Site) -> None:
    """Somebody edited, and has not asked for a reload yet: no two configurations are in force at once."""
    first, _ = site.wait_for_workers()
    site.proxy.config["users"][ALICE] = "new"
    site.proxy.write_config()
    since = site.proxy.mark()
    os.kill(first, SIGKILL)
    site.proxy.wait_log("has loaded another configuration than the others: all reload it", since=since)
    site.proxy.wait_log("reload: generation 2 active: .* 1 moved", since=since)
    site.wait_for_workers(but=first)
    for _ in range(8):
        with site.proxy.client() as client:
            assert client.deliver("s@x", [ALICE]).verdict(0).positive
            client.quit()
    assert site.dots(site.old) == [] and len(site.dots(site.new)) == 8
    assert site.status["torn"] is None


def test_all_workers_die_at_once(site: Site) -> None:
    both = site.wait_for_workers()
    for pid in both:
        os.kill(pid, SIGKILL)
    with site.proxy.client(timeout=15) as client:  # waits in the kernel's queue meanwhile
        assert client.deliver("s@x", [ALICE]).verdict(0).positive
        client.quit()
    assert not set(both) & set(site.wait_for_workers())
    assert site.ctl("drain", ALICE).status == 2


def test_one_that_cannot_start_at_all_ends_the_start(site: Site) -> None:
    """The file changes between the look of the command and that of its workers: nobody serves, and it says why."""
    assert site.proxy.stop() == 0
    add_metrics(site.proxy)
    site.set_backend("old", user="u", password_file="secret")
    password = Path(site.proxy.directory) / "secret"
    password.write_text("secret\n")
    since = site.proxy.mark()
    # The command reads it, and by the time that a worker can it is no password any more.
    process = site.proxy.spawn()
    assert eventually(lambda: os.path.exists(str(site.proxy.address)))
    password.unlink()
    assert process.wait(15) == 1
    line = site.proxy.wait_log("cannot serve", since=since)
    assert "password_file: cannot be read" in line
    assert "stopped: a worker could not be started" in site.proxy.log() and "Traceback" not in site.proxy.log()
    assert not os.path.exists(str(site.proxy.address)) and not os.path.exists(f"{site.proxy.directory}/ctl")


# --- the supervisor dies ----------------------------------------------------------------------------------------------


def test_workers_without_supervisor_end_what_they_have_and_deliver_nothing_by_old_routes(site: Site) -> None:
    go = threading.Event()
    site.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    workers = site.wait_for_workers()
    past, holder = site.send_dot("past@x")
    with site.proxy.client() as before, site.proxy.client() as idle:
        assert before.envelope("before@x", [ALICE]).rcpts[0].positive
        site.proxy.signal(SIGKILL)
        site.proxy.wait()
        assert idle.reply(3).code == 421
        site.proxy.config["users"][ALICE] = "new"
        site.proxy.write_config()
        site.proxy.start()  # while the old workers have something to end
        assert not ended(holder)
        before.send(b"x\r\n.\r\n")
        assert before.reply().text.startswith("451 4.2.1 ")
    go.set()
    assert past.reply().positive, "its dot was sent, and the answer came"
    past.close()
    assert eventually(lambda: all(map(ended, workers))), "a worker outlives its supervisor"
    assert [seen.sender for seen in site.old.transactions() if seen.dotted] == ["past@x"]
    run = site.ctl("drain", ALICE)
    assert run.status == 2 and "after one that had died" in run.out
    with site.proxy.client() as client:
        assert client.deliver("s@x", [ALICE]).verdict(0).positive
        client.quit()
    assert len(site.dots(site.new)) == 1


# --- a worker hangs ---------------------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_named_and_nothing_is_claimed(site: Site) -> None:
    first, second = site.wait_for_workers()
    os.kill(first, SIGSTOP)
    try:
        began = time.monotonic()
        waiting = [site.start_ctl(*verb) for verb in (("status",), ("drain", ALICE), ("move", ALICE, "new"))]
        status, drain, move = (end_ctl(process, began) for process in waiting)
        assert status.seconds < 30 and drain.seconds < 40 and move.seconds < 50
        assert status.status == 0 and f"worker process {first} does not answer" in status.out
        assert f"silent, pid {first}," in status.out and f"serving, pid {second}," in status.out
        for run in (drain, move):
            assert run.status == 3 and f"worker 1 (pid {first}) does not answer" in run.error, run
        assert f"says that {ALICE} is on new now" in move.error
    finally:
        os.kill(first, SIGCONT)
    # Then it is not left by itself with what it had before.
    assert site.ctl("drain", ALICE).status == 0
    for _ in range(8):
        with site.proxy.client() as client:
            assert client.deliver("s@x", [ALICE]).verdict(0).positive
            client.quit()
    assert site.dots(site.old) == [] and len(site.dots(site.new)) == 8


# --- the file changes between one worker's look at it and another's ---------------------------------------------------


def reload_while_one_sleeps(site: Site, then: str) -> Run:
    """A reload for which one worker reads the file as it is now, and the other reads `then`."""
    first, _ = site.wait_for_workers()
    since = site.proxy.mark()
    began = time.monotonic()
    os.kill(first, SIGSTOP)
    try:
        reload = site.start_ctl("--json", "reload")
        site.proxy.wait_log("control: reload by", since=since)
        time.sleep(0.5)
        site.proxy.write_config(then)
    finally:
        os.kill(first, SIGCONT)
    return end_ctl(reload, began)


def test_a_file_that_is_edited_amid_a_reload_is_loaded_again(site: Site) -> None:
    text = Path(site.proxy.config_path).read_text()
    site.proxy.write_config(text.replace(f'"{ALICE}": old', f'"{ALICE}": new'))
    run = reload_while_one_sleeps(site, text.replace(f'"{BOB}": old', f'"{BOB}": new'))
    assert run.status == 0 and run.document["sha256"] == site.status["config"]["sha256"], run
    assert site.status["torn"] is None and site.status["generation"] == 2
    for _ in range(8):
        with site.proxy.client() as client:
            assert client.deliver("s@x", [ALICE, BOB]).verdict(1).positive
            client.quit()
    assert len(site.dots(site.old, ALICE)) == 8 and len(site.dots(site.new, BOB)) == 8


def test_a_file_that_is_broken_amid_a_reload_is_told_and_nothing_is_claimed(site: Site) -> None:
    text = Path(site.proxy.config_path).read_text()
    mended = text.replace(f'"{ALICE}": old', f'"{ALICE}": new')
    site.proxy.write_config(mended)
    run = reload_while_one_sleeps(site, text.replace('": old', '": odl'))
    assert run.status == 3 and "do not deliver by the same configuration: worker 1 has sha256 " in run.error, run
    assert any("odl" in line for line in run.document["errors"])
    assert "do not deliver by the same configuration" in site.ctl("status").out
    assert site.ctl("drain", ALICE).status == 3
    site.proxy.write_config(mended)
    assert site.ctl("drain", ALICE).status == 0, "it has them agree first"
    assert site.status["torn"] is None
    for _ in range(8):
        with site.proxy.client() as client:
            assert client.deliver("s@x", [ALICE]).verdict(0).positive
            client.quit()
    assert site.dots(site.old) == []


# --- what is promised about the whole ---------------------------------------------------------------------------------


def test_a_drain_waits_for_what_either_worker_has_past_its_dot(site: Site) -> None:
    go = threading.Event()
    site.old.script = Script(final=(Await(go), *say("250 2.0.0 stored")))
    with site.dots_in_both() as clients:
        numbers = [flight["number"] for flight in site.flights]
        assert len(set(numbers)) == len(numbers)
        site.proxy.config["users"][ALICE] = "new"
        site.proxy.write_config()
        site.proxy.signal(SIGUSR1)
        began = time.monotonic()
        drain = site.start_ctl("drain", ALICE)
        site.proxy.wait_log(f"control: drain {ALICE}")
        time.sleep(1.5)
        assert drain.poll() is None
        with site.proxy.client() as client:  # what comes later goes by the new table, in whichever worker
            assert client.deliver("later@x", [ALICE]).verdict(0).positive
            client.quit()
        go.set()
        assert all(client.reply().positive for client in clients.values())
        run = end_ctl(drain, began)
    assert run.status == 0 and "on new" in run.out, run
    assert f"for {len(numbers)} deliveries" in run.out.replace("\n    ", " ")
    assert len(site.dots(site.new)) == 1


def test_twenty_moves_at_once_under_load(site: Site) -> None:
    users = [f"user{number}@example.org" for number in range(20)]
    site.proxy.config["users"].update(dict.fromkeys(users, "old"))
    site.proxy.reload()
    with Load(site) as others, Load(site, users[0], 2) as own:
        began = time.monotonic()
        moves = [site.start_ctl("move", user, "new") for user in users]
        runs = [end_ctl(move, began, timeout=100) for move in moves]
        since = time.monotonic()
        time.sleep(0.3)
    assert [run for run in runs if run.status] == []
    others.check(site.old)
    own.check(site.old, site.new)
    late = [dot for user in users for dot in site.dots(site.old, user) if dot > since]
    assert late == []
    assert site.status["users_on"] == {"new": 20, "old": 2}


def test_a_large_table_that_each_worker_has_loaded_by_a_process(site: Site) -> None:
    site.proxy.config["users"].update({f"user{number}@example.org": "old" for number in range(60_000)})
    site.proxy.write_config()
    assert os.path.getsize(site.proxy.config_path) > 2**20, "a smaller one is loaded by a thread"
    site.proxy.signal(SIGUSR1)
    run = site.ctl("drain", "user59999@example.org")
    assert run.status == 0 and "user59999@example.org: on old" in run.out, run
    assert site.ctl("move", ALICE, "new").status == 0
    first, _ = site.wait_for_workers()
    os.kill(first, SIGKILL)
    site.wait_for_workers(but=first)
    assert site.ctl("move", BOB, "new").status == 2  # a worker died
    for _ in range(4):
        with site.proxy.client() as client:
            assert client.deliver("s@x", [ALICE, BOB]).verdict(1).positive
            client.quit()
    assert site.dots(site.old) == [] and len(site.dots(site.new, BOB)) == 4


def test_uncertain_deliveries_of_both_are_in_one_log(site: Site) -> None:
    go = threading.Event()
    site.old.script = Script(final=(Await(go), Close()))
    with site.dots_in_both():
        count = len(site.flights)
        go.set()
        run = site.ctl("move", ALICE, "new")
    assert run.status == 2
    lines = (Path(site.proxy.directory) / "uncertain").read_text("ascii").splitlines()
    assert {json.loads(line)["message_id"] for line in lines} == {f"<{number}@x>" for number in range(count)}
    assert len(lines) == count == site.status["uncertain"]
    assert len(site.ctl("--json", "uncertain").document["uncertain"]) == count


def test_the_limits_are_those_of_all_together() -> None:
    script = Script(final=(Pause(0.3), *say("250 2.0.0 stored")))
    with FakeBackend(script) as old, FakeBackend() as new:
        proxy = controlled({"old": old, "new": new}, {ALICE: "old"}, workers=2, max_clients=5)
        proxy.workers = 2
        site = Site(old, new, proxy)
        site.set_backend("old", max_connections=3, max_per_user=20)
        with proxy:
            backends = {backend["name"]: backend for backend in site.status["backends"]}
            assert (backends["old"]["max_connections"], backends["new"]["max_connections"]) == (3, 20)
            clients = [LmtpClient(proxy.address, timeout=20) for _ in range(8)]
            greeted = [client for client in clients if not client.silent(2.0)]
            assert len(greeted) == 5, "max_clients"
            for client in clients:
                client.close()
            with Load(site, ALICE, 5) as load:
                time.sleep(2.5)
            spans = [(seen.dot_at or 0.0, seen.recipients[0].final_at or 0.0) for seen in old.transactions()]
            assert max(sum(dot <= at < final for dot, final in spans) for at, _ in spans) == 3, "max_connections"
            assert load.odd == [] and load.accepted


def test_a_limit_that_cannot_be_shared_is_refused(site: Site) -> None:
    site.set_backend("old", max_connections=1)
    assert "refused" in site.proxy.reload()
    errors = site.status["reload"]["errors"]
    assert len(errors) == 1 and "cannot share max_connections of old, which is 1" in errors[0]


def test_a_stop_under_load(site: Site) -> None:
    site.old.script = Script(final=(Pause(0.05), *say("250 2.0.0 stored")))
    workers = site.wait_for_workers()
    with Load(site) as load:
        time.sleep(1.0)
        assert site.proxy.stop() == 0
        assert all(map(ended, workers))
    load.check(site.old)
    assert not os.path.exists(str(site.proxy.address)) and not os.path.exists(f"{site.proxy.directory}/ctl")


def test_processes_and_log_lines_can_be_told_apart(site: Site) -> None:
    first, second = site.wait_for_workers()

    def title(pid: int) -> str:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().strip("\0 ")

    path = site.proxy.config_path
    assert title(site.proxy.pid) == f"lmtp-proxy: supervisor of 2 workers [{path}]"
    assert [title(first), title(second)] == [f"lmtp-proxy: worker {n}: 0 sessions [{path}]" for n in (1, 2)]
    with site.proxy.client() as client:
        assert client.deliver("s@x", [ALICE]).verdict(0).positive
        client.quit()
    assert any(f"[{pid}]" in site.proxy.wait_log("status=sent") for pid in (first, second))
    assert f"[{site.proxy.pid}]" in site.proxy.wait_log("ready: ")
