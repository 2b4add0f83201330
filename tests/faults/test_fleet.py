"""lmtp-proxyctl --fleet: three real proxies with the same stores; hosts that are silent, odd or late; dead movers."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.ctl import Run, ctl, end_ctl, start_ctl
from tests.support.fleet import Hosts
from tests.support.patience import SOON
from tests.support.script import Await, Close, Script, say

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"
USERS = {ALICE: "old", BOB: "new", CAROL: "old", "@example.net": "old"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Hosts]:
    with Hosts(USERS) as hosts:
        yield hosts


@pytest.fixture
def fleet(shared: Hosts) -> Hosts:
    shared.as_new()
    return shared


def flat(text: str) -> str:
    return " ".join(text.split())


def in_flight(fleet: Hosts, name: str, go: threading.Event, last: tuple[object, ...] = ()) -> threading.Thread:
    """A delivery of alice's by that host that is past its dot at the old store, and stays so until `go`."""
    fleet.old.script = Script(final=(Await(go), *(last or say("250 2.0.0 stored"))))  # type: ignore[arg-type]
    client = fleet.proxies[name].client(timeout=60)
    outcome = client.envelope("slow@x", [ALICE])
    client.send(b"Message-ID: <slow@x>\r\n\r\nx\r\n.\r\n")
    assert fleet.old.wait_for(lambda: any(seen.dotted for seen in fleet.old.transactions()))

    def end() -> None:
        client.finals(outcome)
        client.close()

    thread = threading.Thread(target=end)
    thread.start()
    return thread


def start(fleet: Hosts, *arguments: str) -> tuple[subprocess.Popen[str], float]:
    return start_ctl("--fleet", fleet.file, *arguments), time.monotonic()


def wait_for_line(fleet: Hosts, name: str, backend: str, user: str = ALICE) -> None:
    deadline = time.monotonic() + SOON
    while fleet.line(name, user) != backend:
        assert time.monotonic() < deadline, f"{user} is not on {backend} on {name}"
        time.sleep(0.01)


def unchanged(fleet: Hosts, ended: Run, status: int = 1) -> Run:
    assert ended.status == status and ended.out == "", ended
    assert fleet.lines(ALICE) == ["old"] * 3, ended
    assert fleet.routes(ALICE) == ["old"] * 3, ended
    return ended


# --- it moves --------------------------------------------------------------------------------------------------------


def test_one_user_on_all_hosts(fleet: Hosts) -> None:
    ended = fleet.ctl("move", ALICE, "new")
    assert ended.status == 0, ended
    first, *hosts, last = ended.out.splitlines()
    assert first == f"{ALICE}: old -> new"
    assert [re.sub(r"\d+", "N", line) for line in hosts] == ["mxN: generation N, nothing in flight"] * 3
    assert re.fullmatch(r"all 3 hosts, [\d.]+ m?s from the first hold to the last word", last)
    assert fleet.lines(ALICE) == ["new"] * 3
    assert [fleet.delivered(ALICE, name) for name in fleet.names] == ["new"] * 3
    again = fleet.ctl("move", ALICE, "new")
    assert again.status == 0 and f"{ALICE}: was on new already" in again.out and "hold" not in again.out
    assert fleet.lines(CAROL) == ["old"] * 3


def test_the_json_has_each_host(fleet: Hosts) -> None:
    document = fleet.ctl("--json", "move", ALICE, BOB, "new").document
    assert document["status"] == 0 and document["backend"] == "new" and set(document["hosts"]) == set(fleet.names)
    assert {host["previous"][ALICE] for host in document["hosts"].values()} == {"hold"}
    assert {host["previous"][ALICE] for host in document["held"].values()} == {"old"}
    assert all(BOB not in host["previous"] for host in document["held"].values()), "who is there is not parked"


@pytest.mark.parametrize("place", ["reject", "hold"])
def test_to_be_parked_is_one_step(fleet: Hosts, place: str) -> None:
    since = {name: proxy.mark() for name, proxy in fleet.proxies.items()}
    assert fleet.ctl("move", ALICE, place).status == 0
    assert fleet.lines(ALICE) == [place] * 3
    for name, proxy in fleet.proxies.items():
        assert proxy.log()[since[name] :].count("reload: generation") == 1
    assert fleet.ctl("move", ALICE, "new").status == 0
    assert fleet.lines(ALICE) == ["new"] * 3


def test_a_list_by_standard_input_and_who_is_on_no_line(fleet: Hosts) -> None:
    users = [f"user{number}@example.org" for number in range(40)]
    ended = fleet.ctl("move", "--file", "-", "new", text="\n".join([*users, ALICE, BOB, "#odd@example.org"]) + "\n")
    assert ended.status == 0 and flat(ended.out).startswith(
        "42 users: 40 nowhere -> new, 1 old -> new, 1 was on new already"
    )
    assert fleet.ctl("move", "#odd@example.org", "new").status == 0, "# begins a comment in a list"
    assert fleet.lines("#odd@example.org") == ["new"] * 3


def test_names_go_by_stdin_and_never_as_arguments(fleet: Hosts) -> None:
    """A remote shell reads arguments."""
    for name in fleet.names:
        fleet.instead(name, f'printf "%s\\n" "$*" >> {fleet.directory}/seen; exec $real "$@"')
    odd = "x`touch${IFS}y`|id&@example.org"
    for verb in (("move", odd, "new"), ("drain", odd), ("lookup", odd)):
        assert fleet.ctl(*verb).status == 0
    seen = Path(fleet.directory, "seen").read_text()
    assert "touch" not in seen and "example" not in seen
    assert re.fullmatch(r"[A-Za-z0-9@%+=:,./_ \n-]+", seen)


@pytest.mark.parametrize("backend", ["a;id", "$(id)", "a'b"])
def test_a_backend_that_a_shell_would_read_is_not_asked_for(fleet: Hosts, backend: str) -> None:
    ended = unchanged(fleet, fleet.ctl("move", ALICE, backend))
    assert "mx1: cannot be asked: a shell may read" in ended.err


def test_a_dry_run_changes_nothing(fleet: Hosts) -> None:
    before = [fleet.text(name) for name in fleet.names]
    ended = fleet.ctl("move", "--dry-run", ALICE, "new")
    assert ended.status == 0 and "mx1, mx2, mx3: nothing was changed" in ended.out
    assert [fleet.text(name) for name in fleet.names] == before


# --- before anything is changed --------------------------------------------------------------------------------------


def test_a_backend_that_is_not_there_or_elsewhere(fleet: Hosts) -> None:
    proxy = fleet.proxies["mx2"]
    text = fleet.text("mx2")
    try:
        with FakeBackend() as other:
            proxy.write_config(text.replace(fleet.new.path, other.path))
            assert "active" in proxy.signal_reload()
            ended = unchanged(fleet, fleet.ctl("move", ALICE, "new"))
            what = f"backend new: {fleet.new.path} on mx1 and mx3, {other.path} on mx2"
            assert what in ended.err and "--differ" in ended.error
            assert fleet.ctl("move", "--differ", ALICE, "new").status == 0
        proxy.write_config(text.replace("new:", "neu:").replace(": new", ": neu"))
        assert "active" in proxy.signal_reload()
        assert fleet.ctl("move", CAROL, "reject").status == 0, "which backends there are beside these is no matter"
        for name in ("mx1", "mx3"):
            fleet.proxies[name].reload()
        ended = unchanged(fleet, fleet.ctl("move", ALICE, "new"))
        assert 'mx2: there is no backend "new"' in ended.err and "mx1" not in ended.err
    finally:
        proxy.write_config(text)
        proxy.signal_reload()


def test_names_that_are_folded_differently(fleet: Hosts) -> None:
    proxy = fleet.proxies["mx3"]
    text = fleet.text("mx3")
    try:
        proxy.write_config(text.replace("config:\n", "config:\n  recipient_delimiter: ''\n"))
        assert "active" in proxy.signal_reload()
        ended = unchanged(fleet, fleet.ctl("move", ALICE, "new"))
        assert "recipient_delimiter: + on mx1 and mx2" in ended.err and "on mx3" in ended.err
    finally:
        proxy.write_config(text)
        proxy.signal_reload()


def test_a_user_who_is_elsewhere_on_one_host(fleet: Hosts) -> None:
    own = ("-c", fleet.proxies["mx2"].config_path)
    assert ctl(*own, "move", ALICE, "reject").status == 0
    ended = fleet.ctl("move", ALICE, "new")
    assert ended.status == 1 and f"{ALICE}: is on old on mx1 and mx3, reject on mx2" in ended.err
    assert fleet.lines(ALICE) == ["old", "reject", "old"]
    told = fleet.ctl("move", "--differ", ALICE, "new")
    assert told.status == 0 and "warning: the hosts do not say the same" in told.err
    assert fleet.lines(ALICE) == ["new"] * 3


@pytest.mark.parametrize("place", ["hold", "new"])
def test_what_an_earlier_move_has_left_is_no_difference(fleet: Hosts, place: str) -> None:
    assert ctl("-c", fleet.proxies["mx1"].config_path, "move", ALICE, place).status == 0
    assert ctl("-c", fleet.proxies["mx3"].config_path, "move", ALICE, "hold").status == 0
    assert fleet.ctl("move", ALICE, "new").status == 0
    assert fleet.lines(ALICE) == ["new"] * 3


def test_a_store_that_would_not_take_the_mail(fleet: Hosts) -> None:
    fleet.new.script = Script(rcpt=say("550 5.1.1 User unknown"))
    ended = unchanged(fleet, fleet.ctl("move", ALICE, "new"))
    for name in fleet.names:
        assert f"{name}: {ALICE}: account missing on new? it said 550 5.1.1" in ended.err
    assert fleet.ctl("move", "--no-preflight", ALICE, "new").status == 0


def test_what_somebody_else_has_edited(fleet: Hosts) -> None:
    """It is not taken for known because a look was told of it."""
    proxy = fleet.proxies["mx2"]
    proxy.write_config(fleet.text("mx2").replace(f'"{CAROL}": old', f'"{CAROL}": new'))
    for _ in range(2):
        ended = fleet.ctl("move", ALICE, "new")
        assert ended.status == 1 and f"mx2: 1 user moved from old to new: {CAROL}" in ended.err, ended
        assert fleet.lines(ALICE) == ["old"] * 3
    assert fleet.ctl("move", "--dry-run", "--also", ALICE, "new").status == 0
    assert fleet.ctl("move", ALICE, "new").status == 1, "a look at it has not made it known"
    assert fleet.ctl("move", "--also", ALICE, "new").status == 0
    assert fleet.lines(CAROL) == ["old", "new", "old"]


def test_a_domain_on_no_line_could_not_be_taken_back(fleet: Hosts) -> None:
    ended = unchanged(fleet, fleet.ctl("move", "@example.com", "new"))
    assert "@example.com: is on no line on mx1" in ended.err
    assert fleet.ctl("move", "@example.net", "new").status == 0


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", ": is empty: name the hosts"),
        ("hosts:\n", ": hosts: names no host"),
        ("hosts: [a]\n", ":1: hosts: must be a mapping"),
        ("hosts:\n  mx1: lmtp-proxyctl\n", ":2: hosts.mx1: must be an argument list"),
        ("hosts:\n  mx1: []\n", ":2: hosts.mx1: must be an argument list"),
        ("hosts:\n  mx1: [no-such-program-here]\n", ":2: hosts.mx1: there is no program no-such-program-here"),
        ("hosts:\n  mx1: [true]\n  mx1: [true]\n", ":3: hosts.mx1: "),
        ("host:\n  mx1: [true]\n", ":1: host: unknown key, did you mean hosts?"),
        ("hosts:\n  mx1: [true]\npatience: soon\n", ":3: patience: must be seconds"),
        ("hosts:\n  mx1: [\n", ":3: YAML error"),
    ],
)
def test_a_file_that_is_wrong(fleet: Hosts, text: str, what: str) -> None:
    fleet.write(text)
    for verb in (("move", ALICE, "new"), ("status",)):
        ended = unchanged(fleet, fleet.ctl(*verb))
        assert f"{fleet.file}{what}" in ended.err and ended.error.endswith("nothing was changed"), ended


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write(fleet: Hosts, mode: int) -> None:
    os.chmod(fleet.file, mode)
    try:
        assert f"others may write it (mode {mode:04o})" in unchanged(fleet, fleet.ctl("move", ALICE, "new")).error
    finally:
        os.chmod(fleet.file, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else(fleet: Hosts) -> None:
    os.chown(fleet.file, 12345, -1)
    try:
        assert "belongs to user 12345" in unchanged(fleet, fleet.ctl("status")).error
    finally:
        os.chown(fleet.file, 0, -1)


def test_a_file_in_a_directory_that_others_may_write(fleet: Hosts) -> None:
    os.chmod(fleet.directory, 0o777)
    try:
        assert "others may put another file in its place" in unchanged(fleet, fleet.ctl("status")).error
    finally:
        os.chmod(fleet.directory, 0o700)


@pytest.mark.parametrize(
    "arguments",
    [
        ("reload",), ("migrate", "x"), ("-c", "/x", "status"), ("--socket", "/x", "status"), ("move", "new"),
        ("lookup",), ("drain",), ("move", ALICE, "new", "--only-from", "old"), ("move", "a@@b", "new"),
    ],
)  # fmt: skip
def test_wrong_arguments(fleet: Hosts, arguments: tuple[str, ...]) -> None:
    assert fleet.ctl(*arguments).status == 64


# --- hosts that fail -------------------------------------------------------------------------------------------------

LOOK, HOLD, FLIP, BACK = "*--dry-run*", "*-\\ hold", "*only-from\\ hold,new*", "*only-from\\ hold,old*"


def runs(pid: str) -> bool:
    """Whether it lives; one that nobody has waited for does not."""
    try:
        return " (sleep) Z " not in Path("/proc", pid, "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def failing(fleet: Hosts, name: str, when: str, what: str) -> None:
    """What is run on that host in place of one step."""
    fleet.instead(name, f'case "$*" in {when}) {what};; *) exec $real "$@";; esac')


@pytest.mark.parametrize("when", [LOOK, HOLD])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("exit 7", "no answer: exit status 7"),
        ("echo ssh: no route >&2; exit 255", "no answer: exit status 255 (ssh: no route)"),
        ("kill -9 $$", "no answer: "),
        ('echo Welcome to mx2; exec $real "$@"', 'one line of JSON and nothing else: it said "Welcome to mx2"'),
        ("echo '{\"status\": 0}'", "the answer has no usable"),
        ("echo '{\"status\": 0}'; exit 1", "exit status 1, but its answer says otherwise"),
        ("echo '[0]'", "no answer that is one line of JSON"),
        ("yes '{}' | head -c 80000000", "its answer does not end"),
        ("exec sleep 600", "no answer for "),
    ],
)
def test_a_host_that_does_not_answer_before_the_flip(fleet: Hosts, when: str, what: str, said: str) -> None:
    fleet.impatient()
    failing(fleet, "mx2", when, what)
    ended = fleet.ctl("move", ALICE, "new", "--timeout", "5")
    assert ended.status == 1, ended
    if said.startswith("the answer has") and when == HOLD:
        said = "it answers about other users"
    assert f"mx2: {said}" in ended.err or f"mx2: no answer that is {said}" in ended.err, ended
    assert fleet.lines(ALICE) == fleet.routes(ALICE) == ["old"] * 3
    if when == HOLD:
        assert "hold was taken back, so nothing was changed on any host" in ended.error
    else:
        assert ended.error == "nothing was changed on any host"


def test_a_command_that_is_given_up_is_killed(fleet: Hosts) -> None:
    fleet.impatient()
    pid = Path(fleet.directory, "pid")
    failing(fleet, "mx2", LOOK, f"echo $$ > {pid}; exec sleep 600")
    assert fleet.ctl("move", ALICE, "new").status == 1
    deadline = time.monotonic() + SOON
    while runs(pid.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_that_keeps_the_output_open_is_not_waited_for(fleet: Hosts) -> None:
    """As the first ssh leaves one behind with ControlPersist."""
    fleet.instead("mx2", 'sleep 45 & exec $real "$@"')
    ended = fleet.ctl("move", ALICE, "new")
    assert ended.status == 0 and ended.seconds < 40, ended


def test_a_host_that_refuses_the_hold(fleet: Hosts) -> None:
    failing(fleet, "mx3", HOLD, 'echo "{\\"status\\": 1, \\"error\\": \\"no room\\"}"; exit 1')
    since = fleet.proxies["mx3"].mark()
    ended = unchanged(fleet, fleet.ctl("move", ALICE, "new"))
    assert "mx3: no room" in ended.err and "hold was taken back" in ended.error
    assert "reload" not in fleet.proxies["mx3"].log()[since:], "where nothing was changed nothing is taken back"


def test_a_hold_that_cannot_be_taken_back_is_named(fleet: Hosts) -> None:
    fleet.instead("mx1", f'case "$*" in {BACK}) echo gone >&2; exit 255;; *) exec $real "$@";; esac')
    failing(fleet, "mx2", HOLD, "exit 7")
    ended = fleet.ctl("move", ALICE, "new")
    assert ended.status == 1 and fleet.lines(ALICE) == ["hold", "old", "old"]
    assert "mx1: hold could not be taken back: no answer: exit status 255 (gone)" in ended.err
    assert f"{ALICE} may be on hold still on mx1: the same command again goes on from there" in ended.error
    fleet.commands = {name: fleet.command(name) for name in fleet.names}
    fleet.write()
    assert fleet.ctl("move", ALICE, "new").status == 0 and fleet.lines(ALICE) == ["new"] * 3


def test_users_go_back_to_where_each_was(fleet: Hosts) -> None:
    """Who was on no line stays where their mail did not go either; the others are as before."""
    assert ctl("-c", fleet.proxies["mx1"].config_path, "move", CAROL, "hold").status == 0
    failing(fleet, "mx2", HOLD, "exit 7")
    ended = fleet.ctl("move", ALICE, BOB, CAROL, "dave@example.net", "erin@example.com", "new")
    assert ended.status == 1 and "hold was taken back" in ended.error, ended
    for user, place in {ALICE: "old", BOB: "new", "dave@example.net": "old"}.items():
        assert fleet.routes(user) == [place] * 3, user
    assert fleet.lines(CAROL) == ["hold", "old", "old"], "each as it was there"
    assert fleet.lines("erin@example.com") == ["reject", "reject", "reject"]


@pytest.mark.parametrize("what", ["exit 7", "exec sleep 600", 'echo Hello; exec $real "$@"'])
def test_after_the_first_flip_each_host_is_told(fleet: Hosts, what: str) -> None:
    fleet.impatient()
    failing(fleet, "mx2", FLIP, what)
    ended = fleet.ctl("move", ALICE, "new", "--timeout", "5")
    assert ended.status == 3, ended
    unknown = "new" if "Hello" in what else "hold"
    assert fleet.lines(ALICE) == ["new", unknown, "new"]
    lines = ended.err.splitlines()
    assert f"mx1: {ALICE} on new" in lines and f"mx3: {ALICE} on new" in lines
    assert any(line.startswith(f"mx2: {ALICE} on hold, or on new: no answer") for line in lines), ended
    assert ended.error.startswith(f"{ALICE} on new, but not known to be so, and quiet, on mx2: see what is wrong")
    document = fleet.ctl("--json", "move", CAROL, "new", "--timeout", "5").document
    assert document["status"] == 3 and document["hosts"]["mx1"] == {"status": 0, "error": None}
    fleet.commands["mx2"] = fleet.command("mx2")
    fleet.write()
    assert fleet.ctl("move", ALICE, CAROL, "new").status == 0
    assert fleet.lines(ALICE) == fleet.lines(CAROL) == ["new"] * 3


def test_a_flip_that_is_refused_leaves_its_host_on_hold(fleet: Hosts) -> None:
    failing(fleet, "mx2", FLIP, 'echo "{\\"status\\": 1, \\"error\\": \\"no room\\"}"; exit 1')
    ended = fleet.ctl("move", ALICE, "new")
    assert ended.status == 3 and f"mx2: {ALICE} on hold: no room" in ended.err
    assert fleet.lines(ALICE) == ["new", "hold", "new"]


def test_flips_that_are_refused_by_all_are_no_flips(fleet: Hosts) -> None:
    for name in fleet.names:
        failing(fleet, name, FLIP, 'echo "{\\"status\\": 1, \\"error\\": \\"no room\\"}"; exit 1')
    ended = unchanged(fleet, fleet.ctl("move", ALICE, "new"))
    assert "mx3: no room" in ended.err and "hold was taken back" in ended.error


def test_somebody_else_who_moves_the_user_meanwhile(fleet: Hosts) -> None:
    """Found under the lock of the host's file, whatever the look had seen."""
    own = " ".join([*fleet.command("mx2"), "move", "--no-preflight", ALICE, "reject"])
    failing(fleet, "mx2", HOLD, f'{own} >&2; exec $real "$@"')
    ended = fleet.ctl("move", ALICE, "new")
    assert ended.status == 1 and f"mx2: {ALICE}: was on reject and not on old any more" in ended.err, ended
    assert fleet.lines(ALICE) == ["old", "reject", "old"], "it is not for us to take that back"
    fleet.as_new()
    failing(fleet, "mx2", FLIP, f'{own} >&2; exec $real "$@"')
    ended = fleet.ctl("move", ALICE, "new")
    assert ended.status == 3 and f"mx2: {ALICE}: is on reject, not on hold or new" in ended.err, ended
    assert fleet.lines(ALICE) == ["new", "reject", "new"]


# --- processes that stand still --------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [LOOK, HOLD, FLIP])
def test_a_proxy_that_is_stopped_before_a_step(fleet: Hosts, when: str) -> None:
    fleet.impatient()
    proxy = fleet.proxies["mx2"]
    failing(fleet, "mx2", when, f'kill -STOP {proxy.pid}; exec $real "$@"')
    try:
        ended = fleet.ctl("move", ALICE, "new", "--timeout", "3")
    finally:
        proxy.signal(signal.SIGCONT)
    if when == FLIP:
        assert ended.status == 3 and f"mx2: {ALICE} on hold, or on new: no" in ended.err, ended
        assert fleet.lines(ALICE) == ["new", "hold", "new"]
    else:
        assert ended.status == 1 and fleet.lines(ALICE) == ["old"] * 3, ended
        assert ("may be on hold still on mx2" in ended.error) == (when == HOLD)
    fleet.commands["mx2"] = fleet.command("mx2")
    fleet.write()
    assert fleet.ctl("move", ALICE, "new").status == 0
    assert fleet.lines(ALICE) == fleet.routes(ALICE) == ["new"] * 3


def test_a_proxy_that_is_stopped_while_it_drains(fleet: Hosts) -> None:
    fleet.impatient()
    go = threading.Event()
    delivery = in_flight(fleet, "mx2", go)
    proxy = fleet.proxies["mx2"]
    since = proxy.mark()
    process, began = start(fleet, "move", ALICE, "new", "--timeout", "4")
    try:
        proxy.wait_log(f"control: drain {ALICE}", since=since)
        proxy.signal(signal.SIGSTOP)
        ended = end_ctl(process, began, timeout=90)
    finally:
        proxy.signal(signal.SIGCONT)
        go.set()
    delivery.join()
    assert ended.status == 1 and "mx2: hold could not be taken back" in ended.err, ended
    assert fleet.lines(ALICE) == ["old", "hold", "old"]
    assert fleet.ctl("move", ALICE, "new").status == 0


def test_nothing_is_flipped_while_one_host_is_not_quiet(fleet: Hosts) -> None:
    fleet.impatient()
    go = threading.Event()
    delivery = in_flight(fleet, "mx3", go)
    process, began = start(fleet, "move", ALICE, "new")
    for name in fleet.names:
        wait_for_line(fleet, name, "hold")
    time.sleep(fleet.patience + 2)  # who waits for a delivery is not silent
    assert process.poll() is None and fleet.lines(ALICE) == ["hold"] * 3
    go.set()
    ended = end_ctl(process, began)
    delivery.join()
    assert ended.status == 0 and re.search(r"mx3: generation \d+, waited [\d.]+ s for 1 delivery", ended.out), ended
    assert "waiting for mx3 (waiting for 1 delivery to old[" in flat(ended.err)


def test_a_host_that_is_not_quiet_in_time(fleet: Hosts) -> None:
    go = threading.Event()
    delivery = in_flight(fleet, "mx3", go)
    ended = fleet.ctl("move", ALICE, "new", "--timeout", "1")
    assert ended.status == 1 and "mx3: not all is quiet" in ended.err, ended
    assert "hold was taken back" in ended.error and fleet.lines(ALICE) == ["old"] * 3
    go.set()
    delivery.join()


def test_uncertain_deliveries_are_listed_by_host() -> None:
    with Hosts(USERS) as fleet:  # of its own: they are remembered
        lists_uncertain_deliveries(fleet)


def lists_uncertain_deliveries(fleet: Hosts) -> None:
    go = threading.Event()
    delivery = in_flight(fleet, "mx2", go, (Close(),))
    process, began = start(fleet, "move", ALICE, "new")
    wait_for_line(fleet, "mx2", "hold")
    go.set()
    ended = end_ctl(process, began)
    delivery.join()
    assert ended.status == 2, ended
    assert "mx2: 1 uncertain delivery (dot sent, no reply came):" in ended.out and "<slow@x>" in ended.out
    assert "mx1: 1 uncertain" not in ended.out and fleet.lines(ALICE) == ["new"] * 3
    drained = fleet.ctl("drain", ALICE)
    assert drained.status == 2 and "mx2: 1 uncertain delivery" in drained.out


# --- orders that come late -------------------------------------------------------------------------------------------


def late(fleet: Hosts, name: str, when: str, seconds: float) -> Path:
    """That step comes to the host so much later, whatever has become of whoever asked for it. -> its output."""
    told, out = f"{fleet.directory}/told", f"{fleet.directory}/late"
    Path(out).unlink(missing_ok=True)
    later = f'cat > {told}; setsid sh -c "sleep {seconds}; $real $* < {told} > {out}.new 2>&1; mv {out}.new {out}" &'
    failing(fleet, name, when, f"{later} exec sleep 600")
    return Path(out)


def wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + SOON
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


def test_a_hold_that_comes_too_late_is_none(fleet: Hosts) -> None:
    fleet.impatient()
    out = late(fleet, "mx2", HOLD, 3 * fleet.patience)
    ended = fleet.ctl("move", ALICE, "new")
    assert ended.status == 1 and "hold was taken back" in ended.error, ended
    assert "the order came too late" in wait_for_file(out)
    assert fleet.lines(ALICE) == fleet.routes(ALICE) == ["old"] * 3


def test_what_takes_a_hold_back_comes_after_it(fleet: Hosts) -> None:
    """The hold is under way still when somebody interrupts."""
    fleet.impatient(8.0)
    out = late(fleet, "mx2", HOLD, 4.5)
    process, began = start(fleet, "move", ALICE, "new")
    wait_for_line(fleet, "mx1", "hold")
    process.send_signal(signal.SIGINT)
    ended = end_ctl(process, began)
    assert ended.status == 130 and "interrupted; hold was taken back" in ended.error, ended
    assert '"status": 0' in wait_for_file(out), "it was in time, and before"
    assert fleet.lines(ALICE) == fleet.routes(ALICE) == ["old"] * 3


# --- interrupts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_it_looks(fleet: Hosts, number: int) -> None:
    begun = Path(fleet.directory, "begun")
    failing(fleet, "mx2", LOOK, f"echo > {begun}; exec sleep 600")
    process, began = start(fleet, "move", ALICE, "new")
    wait_for_file(begun)
    begun.unlink()
    process.send_signal(number)
    ended = unchanged(fleet, end_ctl(process, began), 130)
    assert ended.error == "nothing was changed; interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_on_hold_everything_is_taken_back(fleet: Hosts, number: int) -> None:
    go = threading.Event()
    delivery = in_flight(fleet, "mx3", go)
    fleet.impatient()
    process, began = start(fleet, "move", ALICE, "new")
    for name in fleet.names:
        wait_for_line(fleet, name, "hold")
    process.send_signal(number)
    ended = end_ctl(process, began)
    go.set()
    delivery.join()
    assert ended.status == 130 and ended.error.startswith("interrupted; hold was taken back"), ended
    assert fleet.lines(ALICE) == ["old"] * 3


def test_an_interrupt_just_before_all_are_quiet_is_one(fleet: Hosts) -> None:
    go = threading.Event()
    delivery = in_flight(fleet, "mx3", go)
    process, began = start(fleet, "move", ALICE, "new")
    for name in fleet.names:
        wait_for_line(fleet, name, "hold")
    process.send_signal(signal.SIGINT)
    go.set()
    ended = end_ctl(process, began)
    delivery.join()
    assert ended.status == 130 and ended.error.startswith("interrupted; hold was taken back"), ended
    assert fleet.lines(ALICE) == ["old"] * 3


def test_interrupted_amid_the_flips_there_is_no_way_back(fleet: Hosts) -> None:
    failing(fleet, "mx2", FLIP, 'sleep 4; exec $real "$@"')
    process, began = start(fleet, "move", ALICE, "new")
    wait_for_line(fleet, "mx1", "new")
    process.send_signal(signal.SIGINT)
    ended = end_ctl(process, began)
    assert ended.status == 0 and "there is no way back" in flat(ended.err), ended
    assert fleet.lines(ALICE) == ["new"] * 3
    fleet.as_new()
    failing(fleet, "mx2", FLIP, 'sleep 4; exec $real "$@"')
    process, began = start(fleet, "move", ALICE, "new")
    wait_for_line(fleet, "mx1", "new")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    ended = end_ctl(process, began)
    assert ended.status == 130 and "mx2: alice@example.org on hold, or on new: was not waited for" in ended.err, ended
    again = fleet.ctl("move", ALICE, "new")
    assert again.status == 0 and "what a dead one has begun" in flat(again.err), again
    assert fleet.lines(ALICE) == ["new"] * 3


# --- two at once, and dead ones --------------------------------------------------------------------------------------


def test_two_at_once_take_turns(fleet: Hosts) -> None:
    began = time.monotonic()
    places = ["new", "reject", "new", "hold"]
    processes = [start_ctl("--fleet", fleet.file, "move", "--no-preflight", ALICE, place) for place in places]
    ended = [end_ctl(process, began, timeout=100) for process in processes]
    assert [run.status for run in ended] == [0] * 4, ended
    assert len(set(fleet.lines(ALICE))) == 1


def test_what_a_killed_one_has_begun_is_waited_for(fleet: Hosts) -> None:
    """A hold of the dead one that came after the flip of the next would leave the user on hold."""
    marker = Path(fleet.directory, "begun")
    failing(fleet, "mx2", HOLD, f'test -e {marker} || {{ touch {marker}; sleep 4; }}; exec $real "$@"')
    process, began = start(fleet, "move", ALICE, "new")
    wait_for_line(fleet, "mx1", "hold")
    process.kill()
    process.communicate()
    ended = fleet.ctl("move", ALICE, "new")
    assert ended.status == 0 and "what a dead one has begun" in flat(ended.err), ended
    assert time.monotonic() - began > 4
    assert fleet.lines(ALICE) == fleet.routes(ALICE) == ["new"] * 3
    marker.unlink()


def test_what_holds_the_lock_is_not_waited_for_for_ever(fleet: Hosts) -> None:
    with open(fleet.file) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = unchanged(fleet, fleet.ctl("move", ALICE, "new", "--timeout", "1"))
        assert "another lmtp-proxyctl is at work" in ended.error
        assert fleet.ctl("status").status == 0


@pytest.mark.timeout(400)
def test_movers_that_are_killed_under_load_lose_and_double_nothing(fleet: Hosts) -> None:
    """At random moments; the same command again is right. Once one store has had a mail, the other gets none."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    stop = threading.Event()
    trouble: list[object] = []
    accepted: list[str] = []
    refused: list[str] = []
    parked = [0.0]

    def deliver(name: str) -> None:
        sent = 0
        try:
            with fleet.proxies[name].client(timeout=60) as client:
                while not stop.is_set():
                    sender = f"{name}.{sent}@x"
                    sent += 1
                    began = time.monotonic()
                    said = client.deliver(sender, [ALICE]).verdict(0)
                    (accepted if said.positive else refused).append(sender)
                    if said.positive:
                        parked.append(time.monotonic() - began)
                    elif said.code // 100 != 4:
                        trouble.append(said)
                    time.sleep(0.005)
                client.quit()
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=deliver, args=(name,)) for name in fleet.names]
    for thread in threads:
        thread.start()
    killed, moves, downtimes = 0, [], []
    try:
        whole = fleet.ctl("move", ALICE, "new").seconds
        here = "new"
        for _ in range(12):
            there = "old" if here == "new" else "new"
            began = time.monotonic()
            process = start_ctl("--fleet", fleet.file, "move", ALICE, there)
            time.sleep(chance.uniform(0.3, 1.0) * whole)
            process.kill()
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
            ended = fleet.ctl("move", ALICE, there)
            assert ended.status == 0, (seed, ended)
            assert fleet.lines(ALICE) == [there] * 3, seed
            moves.append((here, began, time.monotonic()))
            here, there = there, here
            parked.clear()
            began = time.monotonic()
            ended = fleet.ctl("move", ALICE, there)
            assert ended.status == 0, (seed, ended)
            whole = ended.seconds  # of now: others may use the machine more, or less, than before
            downtimes.append(max(parked, default=0.0))
            moves.append((here, began, time.monotonic()))
            here = there
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not trouble, (seed, trouble[:3])
    dots = {
        store: [(seen.dot_at or 0.0, seen.sender) for seen in backend.transactions() if seen.dotted]
        for store, backend in (("old", fleet.old), ("new", fleet.new))
    }
    stored = sorted(sender for found in dots.values() for _, sender in found)
    assert stored == sorted(accepted), (seed, "lost or doubled")
    for (left, _, ended_at), (_, next_began, _) in itertools.pairwise(moves):
        assert not [dot for dot, _ in dots[left] if ended_at < dot < next_began], (seed, left)
    # At each moment one store: the order of all dots changes sides no oftener than there were moves.
    sides = [store for _, store in sorted((dot, store) for store, found in dots.items() for dot, _ in found)]
    turns = sum(before != after for before, after in itertools.pairwise(sides))
    assert turns <= len(moves) + 1, (seed, turns, len(moves))
    downtimes.sort()
    print(
        f"seed {seed}: {killed} of 12 killed, {len(accepted)} mails, {len(refused)} deferred, the longest that a mail "
        f"waited in a move: median {downtimes[len(downtimes) // 2]:.2f} s, at most {downtimes[-1]:.2f} s"
    )
    assert killed >= 6


# --- looking ---------------------------------------------------------------------------------------------------------


def test_status_lookup_and_drain_name_who_is_silent(fleet: Hosts) -> None:
    fleet.impatient()
    status = fleet.ctl("status")
    assert status.status == 0 and [line.split()[0] for line in status.out.splitlines()] == ["host", *fleet.names]
    lookup = fleet.ctl("lookup", ALICE)
    assert lookup.status == 0 and lookup.out.count(" old ") == 3 and "do not say the same" not in lookup.out
    assert ctl("-c", fleet.proxies["mx1"].config_path, "move", ALICE, "new").status == 0
    assert "the hosts do not say the same" in fleet.ctl("lookup", ALICE).out
    assert fleet.ctl("drain", ALICE).status == fleet.ctl("drain", "--all").status == 0
    failing(fleet, "mx2", "*", "echo no route >&2; exit 255")
    for verb in (("status",), ("lookup", ALICE), ("drain", ALICE)):
        ended = fleet.ctl(*verb)
        assert ended.status == 3 and "mx2: no answer: exit status 255 (no route)" in flat(ended.out), ended
        assert ended.error == "mx2 of 3 hosts did not answer, or refused"
        document = fleet.ctl("--json", *verb).document
        assert (
            document["status"] == 3 and "error" in document["hosts"]["mx2"] and "error" not in document["hosts"]["mx1"]
        )


def test_a_drain_that_is_not_over_in_time(fleet: Hosts) -> None:
    go = threading.Event()
    delivery = in_flight(fleet, "mx2", go)
    ended = fleet.ctl("drain", ALICE, "--timeout", "0.5")
    assert ended.status == 3 and "not all is quiet on mx2 after 0.5 s" in ended.error
    go.set()
    delivery.join()


# --- what one host does of it ----------------------------------------------------------------------------------------


def test_a_dry_run_of_one_host(fleet: Hosts) -> None:
    own = ("-c", fleet.proxies["mx1"].config_path)
    before = os.stat(own[1])
    ended = ctl(*own, "move", "--dry-run", ALICE, "new")
    assert ended.status == 0 and flat(ended.out) == (
        f"{ALICE}: old -> new nothing was changed: it was only looked at (--dry-run)"
    )
    document = ctl(*own, "--json", "move", "--dry-run", ALICE, "new").document
    assert document["previous"] == {ALICE: "old"} and document["meaning"]["backends"]["new"] == fleet.new.path
    assert os.stat(own[1]) == before


def test_only_from(fleet: Hosts) -> None:
    own = ("-c", fleet.proxies["mx1"].config_path)
    ended = ctl(*own, "move", "--only-from", "hold,reject", ALICE, CAROL, "new")
    assert ended.status == 1 and f"{ALICE}: is on old, not on" in ended.err and fleet.line("mx1", ALICE) == "old"
    assert ctl(*own, "move", "--only-from", "hold,old", ALICE, "new").status == 0


def test_users_of_a_drain_and_the_address_of_a_lookup_by_a_list(fleet: Hosts) -> None:
    own = ("-c", fleet.proxies["mx1"].config_path)
    assert list(ctl(*own, "--json", "drain", "--file", "-", text=f"{ALICE}\n{BOB}\n").document["routes"]) == [
        ALICE,
        BOB,
    ]
    assert ctl(*own, "--json", "lookup", "--file", "-", text=f"{ALICE}\n").document["backend"] == "old"
    assert ctl(*own, "lookup", "--file", "-", text=f"{ALICE}\n{BOB}\n").status == 64
