# SPDX-License-Identifier: GPL-3.0-or-later
"""What lmtp-proxyctl shows: nothing wider than a terminal, nothing that moves its cursor, and what is waited for."""

from __future__ import annotations

import io
import re
import time
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.client import Answer, ControlError
from lmtp_proxy.ctl.drain import Drained, Progress
from lmtp_proxy.text import safe, zoned_time

LONG = (
    "first.middle.last-name.with-a-long-local-part-of-64-octets-exactly+detail@"
    + "mail.department." * 8
    + "example.org"
)
SOCKET = "/var/spool/postfix/some/where/private/cyrus/socket/lmtp-of-the-second-instance"


def answer(document: dict[str, Any]) -> Answer:
    return Answer(document, "/run/ctl")


def flight(number: int = 1, **values: Any) -> dict[str, Any]:
    return {
        "number": number, "session": "4ab8b601", "backend": "old", "address": "/run/x",
        "recipients": ["alice@example.org"], "count": 1, "sender": "s@x", "phase": "final dot", "seconds": 3.2,
        "octets": 2113, **values,
    }  # fmt: skip


def backend(name: str, **values: Any) -> dict[str, Any]:
    return {
        "name": name, "address": "/run/cyrus/socket/lmtp", "state": "up", "trouble": None, "busy": 3,
        "max_connections": 20, "users": 12, "connections": 9, "failures": 0, "sent": 1234, "deferred": 2, "bounced": 1,
        "uncertain": 0, "octets": 99, "waiting": 0, "waits_for": {}, "tls": None, **values,
    }  # fmt: skip


SPOKEN = {
    "version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "resumed": False, "subject": "CN=store",
    "issuer": "CN=CA", "until": "2026-12-23T23:09:23.000Z", "days_left": 29.5, "sha256": "ab" * 32,
    "key_sha256": "cd" * 32,
}  # fmt: skip


def test_what_is_spoken_with_a_backend_is_told() -> None:
    of_tls = " ".join(line.strip() for line in show.backends([answer(backend("old", tls=SPOKEN))])[3:])
    assert of_tls == (
        "TLSv1.3, TLS_AES_256_GCM_SHA384; certificate of CN=store, issued by CN=CA, valid until "
        "2026-12-23T23:09:23.000Z (29.5 days left)"
    )
    unknown = {**SPOKEN, **dict.fromkeys(("subject", "issuer", "until", "days_left", "sha256", "key_sha256"))}
    assert show.tls(answer(unknown)) == "TLSv1.3, TLS_AES_256_GCM_SHA384"


def record(**values: Any) -> dict[str, Any]:
    return {
        "time": "2026-11-23T23:09:23.123Z", "user": "alice@example.org", "recipient": "alice@example.org",
        "backend": "old", "address": "/run/x", "sender": "s@x", "message_id": "<1@x>", "size": 2113,
        "session": "4ab8b601", "reason": "it closed the connection", **values,
    }  # fmt: skip


def status(**values: Any) -> dict[str, Any]:
    return {
        "version": "0.1.0", "instance": "ab", "pid": 4711, "started": "2026-11-23T23:09:23.123Z", "uptime": 93784.0,
        "workers": [],
        "generation": 7, "socket": "/run/s", "metrics": None, "reload": None, "sessions": 3, "held": 1, "uncertain": 0,
        "stopping": False, "after_crash": None, "reloading": None,
        "config": {"path": "/etc/lmtp-proxy.yml", "sha256": "0123456789abcdef" * 4, "modified": "M", "loaded": "L"},
        "in_flight": {"envelope": 0, "data": 1, "commit": 0, "final dot": 2}, "uncertain_log": None, "users": 20,
        "fallback_backend": "old", "users_on": {"old": 12, "new": 7, "reject": 1, "hold": 0},
        "backends": [backend("old"), backend("new", state="down", trouble="connection refused")], **values,
    }  # fmt: skip


def fits(lines: list[str]) -> bool:
    return all(show.width(line) <= 80 and line == line.rstrip() and line.isprintable() for line in lines)


# --- text ------------------------------------------------------------------------------------------------------------


def test_the_width_is_that_of_a_terminal() -> None:
    assert [show.width(text) for text in ("", "abc", "ü", "u\u0308", "漢字", "🙂", "ｆ")] == [0, 3, 1, 1, 4, 2, 2]


@pytest.mark.parametrize(
    "text, most, shown",
    [
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghijk", 10, "abcd...ijk"),
        ("漢字漢字漢字", 9, "漢...漢字"),
        ("abcdeu\u0308\u0308\u0308", 5, "a...u\u0308\u0308\u0308"),
        ("xxxxxxxe\u0301", 4, "x..."),
    ],
)
def test_a_long_text_keeps_its_beginning_and_its_end(text: str, most: int, shown: str) -> None:
    assert show.cut(text, most) == shown


PRINTABLE = st.text(max_size=300).map(safe)


@given(PRINTABLE, st.integers(8, 80))
def test_a_cut_text_fits(text: str, most: int) -> None:
    shown = show.cut(text, most)
    assert show.width(shown) <= most
    assert shown == text or "..." in shown
    assert not shown.partition("...")[2][:1] or show.width(shown.partition("...")[2][0]) or shown == text


@given(st.text(max_size=400), st.sampled_from(["", "    "]))
def test_a_wrapped_text_fits_and_loses_nothing(text: str, indent: str) -> None:
    lines = show.wrapped(text, indent)
    assert all(show.width(line) <= 80 and line.isprintable() for line in lines)
    assert re.sub(" ", "", "".join(lines)) == re.sub(" ", "", safe(text))


def test_words_are_kept_whole_and_lines_behind_the_indent() -> None:
    lines = show.wrapped("  one " + "two " * 30 + LONG, "      ")
    assert lines[0].startswith("  one two two")
    assert all(line.startswith("      ") for line in lines[1:]) and fits(lines)
    assert "".join(line.strip() for line in lines[2:]) == LONG
    assert show.wrapped("") == [""]


@given(st.lists(st.tuples(PRINTABLE, PRINTABLE, st.integers(0, 10**9)), max_size=5))
def test_a_table_fits_and_is_aligned(rows: list[tuple[str, str, int]]) -> None:
    lines = show.table(["user", "backend", ">bytes"], [[user, to, str(octets)] for user, to, octets in rows])
    assert len(lines) == len(rows) + 1
    assert all(show.width(line) <= 80 for line in lines)
    assert len({show.width(line) for line in lines}) == 1, "the last column is aligned to the right"


def test_the_widest_columns_give_way_first() -> None:
    head, line = show.table(["a", "b", ">n"], [["short", LONG, "12"]])
    assert line.startswith("short ") and line.endswith(" 12") and "..." in line
    assert show.width(line) == 80 and head.index("b") == line.index("first")


# --- what the verbs show ---------------------------------------------------------------------------------------------


def test_deliveries_are_a_table_the_oldest_first() -> None:
    lines = show.flights(
        [
            answer(flight(1, seconds=0.4, phase="data")),
            answer(flight(2, seconds=12.0, recipients=[LONG, "b@x"], count=2, octets=123456789)),
        ]
    )
    assert lines[0].split() == ["user", "backend", "phase", "for", "size"]
    assert lines[1].split()[1:] == ["(+1)", "old", "final", "dot", "12.0", "s", "123", "MB"]
    assert lines[2].split() == ["alice@example.org", "old", "data", "400", "ms", "2.1", "kB"]
    assert fits(lines)
    assert show.flights([]) == ["nothing is in flight"]


def test_what_is_waited_for_in_one_sentence() -> None:
    text = show.waiting_text([answer(flight(1)), answer(flight(2, seconds=1.0, recipients=["b@x"]))])
    assert text == "2 deliveries to old[/run/x]: alice@example.org from <s@x>, dot sent, under way for 3.2 s"
    text = show.waiting_text([answer(flight(phase="commit", sender="", seconds=0.5))])
    assert text == "1 delivery to old[/run/x]: alice@example.org from <>, about to send its dot, under way for 500 ms"


def test_backends_are_a_table_with_their_addresses_below() -> None:
    lines = show.backends(
        [
            answer(backend("old", sent=123456789, deferred=1234567, users=100000, address=SOCKET)),
            answer(backend("a-backend-with-quite-a-long-name", state="down", trouble="no route to host " * 9)),
        ]
    )
    assert fits(lines), lines
    assert lines[0].split() == ["backend", "state", "busy", "users", "sent", "deferred", "bounced", "uncertain"]
    assert lines[1].split() == ["old", "up", "3/20", "100000", "123456789", "1234567", "1", "0"]
    assert SOCKET in "".join(line.strip() for line in lines[2:4])
    assert re.search(r"/run/cyrus/socket/lmtp: no route to host", "\n".join(lines))
    assert "a-b..." in lines[4] or "a-backe" in "\n".join(lines)


def test_a_backend_whose_places_are_all_taken_says_what_they_wait_for() -> None:
    uses = {"its replies to recipients": 17, "the client's message": 3}
    text = " ".join(map(str.strip, show.backends([answer(backend("old", waiting=2, waits_for=uses))])))
    assert (
        "2 messages waiting for a connection; "
        "those in use wait, 17 for its replies to recipients, 3 for the client's message"
    ) in text


def test_the_status() -> None:
    shown = show.status(answer(status()), "0123456789abcdef" * 4)
    text = "\n".join(shown)
    assert fits([line for line in shown if line]), shown
    for part in ("0.1.0, pid 4711, up 26 h 3 min", "7, loaded L", "sha256 0123456789ab, modified M", "3, 1 of them on"):
        assert part in text, text
    for part in ("1 in data", "2 in final dot", "20: 12 on old, 7 on new, 1 on reject", "connection refused"):
        assert part in text, text
    assert "warning" not in text and "on hold" in text and "0 on hold" not in text


def test_the_status_warns_of_a_file_that_is_not_in_force() -> None:
    refused = {"time": "T", "ok": False, "errors": ["/etc/lmtp-proxy.yml:3: users.a: " + "wrong " * 30]}
    shown = show.status(answer(status(reload=refused)), "ff" * 32)
    text = " ".join(line.strip() for line in shown)
    assert "on disk (sha256 ffffffffffff) differs from what runs" in text
    assert "the last reload was refused, T: /etc/lmtp-proxy.yml:3: users.a: wrong" in text
    assert fits([line for line in shown if line]), shown
    assert "warning" not in "\n".join(show.status(answer(status(reload={"ok": True})), None))


def test_the_status_says_what_is_unusual_about_the_process() -> None:
    crash = {"started": "T", "seconds": 12.0, "worker": None}
    shown = show.status(answer(status(after_crash=crash, stopping=True, reloading=3.2)), None)
    text = " ".join(line.strip() for line in shown)
    for part in ("started 12.0 s ago after one that had died", "it is stopping", "a reload is under way, for 3.2 s"):
        assert part in text, text
    assert fits([line for line in shown if line]), shown


def test_a_lookup_shows_each_key_and_the_line_of_the_hit() -> None:
    found = {
        "address": "Alice+x@Example.org", "keys": ["alice+x@example.org", "alice@example.org", "@example.org"],
        "hit": "alice@example.org", "line": 12, "source": "users", "backend": "new", "answer": "what new answers",
    }  # fmt: skip
    assert show.lookup(answer(found), "/etc/lmtp-proxy.yml") == [
        "address   Alice+x@Example.org",
        "keys      alice+x@example.org",
        "          alice@example.org  <- /etc/lmtp-proxy.yml:12",
        "          @example.org",
        "found in  users",
        "backend   new",
        "answer    what new answers",
    ]
    nothing = {**found, "hit": None, "line": None, "source": None, "backend": None, "answer": "450 4.1.1 Unknown"}
    lines = show.lookup(answer(nothing), "/etc/lmtp-proxy.yml")
    assert "found in  nothing: not in users, and there is no fallback_backend for it" in lines
    assert "backend   -" in lines and not any("<-" in line for line in lines)
    assert fits(show.lookup(answer({**found, "keys": [LONG, LONG], "hit": LONG}), SOCKET))


def test_a_check_names_users_per_backend() -> None:
    found = {
        "errors": [], "users": 1234,
        "moved": [{"from": "old", "to": "new", "count": 30, "users": [f"user{number}@x" for number in range(20)]}],
        "added": [{"to": "new", "count": 1, "users": ["n@x"]}],
        "removed": [{"from": "old", "count": 2, "users": ["a@x", "b@x"]}],
        "backends": [{"name": "third", "change": "added"}], "config": ["config.hostname"],
    }  # fmt: skip
    lines = show.check(answer(found), "/etc/lmtp-proxy.yml")
    assert lines[0] == "/etc/lmtp-proxy.yml: OK, 1,234 users, differs from what runs:"
    text = " ".join(line.strip() for line in lines)
    assert "30 users moved from old to new: user0@x, user1@x" in text and "user19@x and 10 more" in text
    assert "1 user added on new: n@x" in lines and "2 users removed from old: a@x, b@x" in lines
    assert "backend added: third" in lines and "changed: config.hostname" in lines and fits(lines)
    same: dict[str, Any] = {"errors": [], "users": 1, "moved": [], "added": [], "removed": [], "backends": []}
    assert show.check(answer({**same, "config": []}), "/f") == ["/f: OK, 1 user, no difference to what runs"]


def test_times_are_those_of_the_clock_on_the_wall_with_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One form everywhere: `migrate` shows them so, too."""
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        assert show.moment("2026-11-23T23:09:23.123Z") == "2026-11-24 00:09:23 +0100"
        assert show.moment("2026-11-23T23:09:23.123Z") == zoned_time(1795475363.123)
        assert show.moment("yesterday") == "yesterday"
        lines = show.uncertain([answer(record())])
        assert lines[0].startswith("2026-11-24 00:09:23 +0100  session 4ab8b601")
        assert "started     2026-11-24 00:09:23 +0100" in show.status(answer(status()), None)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_uncertain_deliveries_show_all_that_helps_to_find_them() -> None:
    lines = show.uncertain([answer(record()), answer(record(recipient=LONG, message_id=None, reason="slow " * 40))])
    assert fits(lines), lines
    text = " ".join(line.strip() for line in lines)
    for part in (
        f"{zoned_time(1795475363)} session 4ab8b601, 2,113 octets to alice@example.org in old[/run/x] from <s@x>",
        "Message-ID <1@x> because it closed the connection",
        "Message-ID not seen because slow",
    ):
        assert part in re.sub(" +", " ", text), text


def test_sessions_are_a_table() -> None:
    found = {"session": "4ab8b601", "peer": "unix", "seconds": 1.25, "state": "data", "sender": LONG, "recipients": 2,
             "octets": 12, "tls": None}  # fmt: skip
    lines = show.sessions([answer(found), answer({**found, "sender": None})])
    assert fits(lines) and lines[2].split() == ["4ab8b601", "unix", "data", "-", "2", "1.2", "s", "12", "B"]
    in_tls = answer({**found, "sender": None, "tls": "TLSv1.3, X, CN=mx1"})
    [head, first, second] = show.sessions([in_tls, answer({**found, "sender": None})])
    assert head.split()[-1] == "tls" and first.endswith("TLSv1.3, X, CN=mx1") and second.endswith(" -")
    assert show.sessions([]) == ["no sessions"]


@pytest.mark.parametrize("broken", [{"number": "1"}, {"seconds": None}, {"recipients": "x"}, {"recipients": [1]}])
def test_an_answer_of_another_shape_is_an_error_in_one_line(broken: dict[str, Any]) -> None:
    progress = Progress(io.StringIO())
    with pytest.raises(ControlError, match="the answer has no usable") as caught:
        progress.flights([answer(flight(**broken))])
    assert "\n" not in str(caught.value)


# --- drained ---------------------------------------------------------------------------------------------------------


def drained(
    *, waited_for: int = 0, done: bool = True, waiting: int = 0, records: int = 0, crash: object = None
) -> Drained:
    flights = [flight(number) for number in range(waiting)]
    document = {"waiting": flights, "uncertain": [record()] * records, "after_crash": crash}
    seen = {number: answer(flight(number)) for number in range(waited_for)}
    return Drained(answer(document), done, 4.94, seen)


def test_a_drain_of_one_user_is_one_line() -> None:
    one = {"alice": "on new"}
    assert (quiet := drained()).lines(one, quiet.text) == ["alice: on new, nothing in flight"]
    assert (waited := drained(waited_for=1)).lines(one, waited.text) == ["alice: on new, waited 4.9 s for 1 delivery"]
    late = drained(waited_for=2, waiting=2, done=False)
    assert late.lines(one, late.text)[0] == "alice: on new, 2 deliveries still in flight after 4.9 s"
    assert len(late.lines(one, late.text)) == 4 and (late.status, waited.status) == (3, 0)
    assert drained(done=False).text == "a reload is still under way after 4.9 s"
    crash = drained(crash={"started": "T", "seconds": 3.0, "worker": None})
    assert crash.status == 2 and "died" in " ".join(crash.lines(one, crash.text))


def test_a_drain_of_some_and_of_many_users() -> None:
    some = drained(waited_for=1).lines({"a": "on new", "b": "on old"}, "end")
    assert some == ["a: on new", "b: on old", "end", "  waited for alice@example.org from <s@x> to old[/run/x]"]
    many = {f"user{number}": "on new" if number else "on old" for number in range(1200)}
    assert drained().lines(many, "end") == ["1,200 users: 1 on old, 1,199 on new; end"]
    assert drained().lines({}, "end") == ["all users: end"]
    assert all(fits(drained(waited_for=1).lines({LONG: "on new", "b": "on old"}, "end")) for _ in "x")


def test_uncertain_deliveries_come_with_advice() -> None:
    lines = drained(records=1).lines({"a": "on new"}, "end")
    assert "1 uncertain delivery (dot sent, no reply came):" in lines
    assert "look there for the Message-ID" in " ".join(lines) and drained(records=1).status == 2


# --- waiting ---------------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_wait_is_shown_after_a_second_when_it_changes_and_every_ten_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream, clock)

    def lines_after(seconds: float, *numbers: int) -> list[str]:
        clock.now += seconds
        before = stream.tell()
        progress.flights([answer(flight(number, seconds=clock.now - 100)) for number in numbers])
        return stream.getvalue()[before:].splitlines()

    assert lines_after(0, 1, 2) == []
    assert lines_after(0.5, 1, 2) == []
    shown = "waiting for 2 deliveries to old[/run/x]: alice@example.org from <s@x>, dot sent,"
    assert lines_after(0.5, 1, 2) == [shown, "    under way for 1.0 s"]
    assert lines_after(5, 1, 2) == []
    assert lines_after(5, 1, 2) == [shown, "    under way for 11.0 s"]
    assert lines_after(0.1, 2) == [shown.replace("2 deliveries", "1 delivery"), "    under way for 11.1 s"]
    progress.step("done")
    assert lines_after(0, 3) == [] and progress.pending == 1
    assert lines_after(1, 3) != []


def test_a_stream_that_nobody_reads_does_no_harm() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    clock = Clock()
    progress = Progress(Broken(), clock)
    for _ in range(3):
        clock.now += 11
        progress.waiting("the reload")


def test_categories_that_take_no_column() -> None:
    assert unicodedata.category("\u0308") == "Mn" and show.width("\u0308") == 0
