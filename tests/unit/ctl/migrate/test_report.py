# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report makes of a journal: who was offline for how long and why, and each form in which that is told."""

import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Sequence
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_proxy.ctl.drain import Failed
from lmtp_proxy.ctl.migrate.journal import Step, open_journal
from lmtp_proxy.ctl.migrate.report import Report, distribution, outages, read_report
from lmtp_proxy.ctl.migrate.report_command import report
from lmtp_proxy.ctl.migrate.report_html import report_page
from lmtp_proxy.ctl.migrate.report_text import receipt_lines, report_document, report_lines
from lmtp_proxy.ctl.output import width
from tests.support.migrated import EVENING, EVIL, JournalFile, made_journal

VOID = {"meta", "rect", "line", "br"}
"""Elements that the page writes without an end."""


def read(path: Path, running: bool = False) -> Report:
    with open_journal(str(path), read_only=True) as journal:
        return read_report(journal, running)


def steps(*rows: tuple[str, float, float | None, str | None]) -> list[Step]:
    """Each of the run before it, but for one that comes after a step that did not end."""
    found: list[Step] = []
    for name, began, ended, outcome in rows:
        run = found[-1].run + (found[-1].ended is None) if found else 1
        found.append(Step(len(found), run, "u", name, 1, began, ended, outcome, ""))
    return found


# --- time offline ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([], []),
        ([("sync", 1, 2, "ok"), ("park", 2, 3, "ok")], []),
        (  # all went well: 10.0 to 14.0, of which 2 for the sync and 0.6 for hooks
            [("block", 10.0, 10.1, "ok"), ("final_sync", 10.2, 12.2, "ok"), ("verify", 12.3, 12.5, "ok"),
             ("move", 12.5, 13.0, "ok"), ("redirect", 13.0, 13.1, "ok"), ("unblock", 13.8, 14.0, "ok"),
             ("requeue", 14.0, 15.0, "ok")],
            [(10.0, 14.0, 2.0, 0.6, 1.4)],
        ),
        (  # killed in the final sync; the next run blocks again: one outage, from the first block on
            [("block", 10.0, 11.0, "ok"), ("final_sync", 11.0, None, None), ("block", 60.0, 61.0, "ok"),
             ("final_sync", 61.0, 63.0, "ok"), ("unblock", 70.0, 71.0, "ok")],
            [(10.0, 71.0, 2.0, 3.0, 7.0)],
        ),
        (  # put back, and moved by another run: two
            [("block", 1.0, 2.0, "ok"), ("final_sync", 2.0, 4.0, "exit 1"), ("unblock", 4.0, 5.0, "ok"),
             ("block", 9.0, 9.5, "ok"), ("final_sync", 9.5, 10.0, "ok"), ("unblock", 10.0, 11.0, "ok")],
            [(1.0, 5.0, 2.0, 2.0, 0.0), (9.0, 11.0, 0.5, 1.5, 0.0)],
        ),
        (  # an unblock that failed ends nothing
            [("block", 1.0, 2.0, "ok"), ("unblock", 3.0, 4.0, "exit 1"), ("unblock", 8.0, 9.0, "ok")],
            [(1.0, 9.0, 0.0, 3.0, 5.0)],
        ),
        ([("block", 1.0, 2.0, "ok"), ("unblock", 3.0, None, None)], [(1.0, None, 0.0, 1.0, None)]),
        ([("unblock", 3.0, 4.0, "ok")], []),
    ],
)  # fmt: skip
def test_an_outage_is_from_block_to_unblock(
    rows: list[tuple[str, float, float | None, str | None]], expected: list[tuple[float | None, ...]]
) -> None:
    found = [(o.began, o.until, o.final_sync, o.hooks, o.ours) for o in outages(steps(*rows))]
    assert [pytest.approx(each) for each in expected] == found


def test_a_plan_without_block_has_the_time_of_its_receipt(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "j")
    journal.run(EVENING, EVENING + 9)
    journal.user("u", "done", EVENING + 9)
    journal.receipt("u", offline={"from": EVENING, "until": EVENING + 3})
    journal.user("v", "done", EVENING + 9)
    journal.receipt("v", offline=None)
    journal.close()
    assert [user.downtime for user in read(tmp_path / "j").users] == [3.0, None]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_a_distribution_has_everybody_in_a_bin(values: list[float]) -> None:
    found = distribution(values)
    assert found is not None
    assert sum(users for _, _, users in found.bins) == len(values) == found.count
    for begin, end, users in found.bins:
        lowest = -1.0 if begin == 0.01 else begin
        assert users == sum(lowest <= value < end for value in values)
    assert all(a[1] == b[0] for a, b in zip(found.bins, found.bins[1:], strict=False))
    assert {found.median, found.p90, found.p99, found.most} <= set(values)
    assert found.median <= found.p90 <= found.p99 <= found.most


def test_percentiles_are_of_users() -> None:
    found = distribution(map(float, range(1, 101)))
    assert found is not None
    assert (found.median, found.p90, found.p99, found.most, found.total) == (50.0, 90.0, 99.0, 100.0, 5050.0)
    assert distribution([]) is None


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 users."""
    path = tmp_path_factory.mktemp("journal") / "j.db"
    made_journal(path, 300)
    return path


def test_the_summary_says_what_to_do_in_the_morning(night: Path) -> None:
    found = read(night)
    failed, attention = found.in_state("failed"), found.in_state("needs_attention")
    lines = report_lines(found)
    text = "\n".join(lines)
    assert len(failed) == 4 and len(attention) == 1
    assert lines[0] == "295 of 300 users moved to new. 4 stayed on old, as before. 1 needs attention."
    assert all(width(line) <= 80 and line.isprintable() for line in lines)
    flat = " ".join(text.split())
    for user in (*failed, *attention):
        assert f"{user.user}: {user.error}"[:60] in flat
    assert re.search(r"median \d\.\d s, 90 % within .*, 99 % within .*, longest", flat)
    assert re.search(r"final sync 8\d %, other hooks 1\d %, lmtp-proxy \d\.\d %", flat)


def test_alike_troubles_are_told_once_and_one_user_needs(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    file = JournalFile(path)
    file.run(EVENING, EVENING + 60, "done")
    for number in range(40):
        file.user(f"u{number:02}@x", "failed", EVENING, error=f"sync: exit 67: dsync(u{number:02}@x): no such user")
    file.user("odd@x", "failed", EVENING, error="sync: timeout after 30 s")
    file.user("one@x", "needs_attention", EVENING, error="look")
    file.close()
    text = " ".join("\n".join(report_lines(read(path))).split())
    assert "1 user needs attention: one@x: look" in text
    assert "41 users failed, and are where they were: odd@x: sync: timeout after 30 s u00@x: sync: exit 67" in text
    assert "the same: u01@x, u02@x," in text and "u10@x and 29 more" in text
    assert text.count("exit 67") == 1 and "--json" not in text


def test_one_user_failed_and_is_where_they_were(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "j.db")
    file.run(EVENING, EVENING + 60, "done")
    file.user("one@x", "failed", EVENING, error="sync: exit 1")
    file.close()
    assert "1 user failed, and is where they were:" in report_lines(read(tmp_path / "j.db"))


def test_what_was_not_delivered_is_so_until_the_run_was_done(tmp_path: Path) -> None:
    """A report is made in the morning; the journal knows the night."""
    file = JournalFile(tmp_path / "j.db")
    file.run(EVENING, EVENING + 60, "done")
    file.user("one@x", "done", EVENING + 8)
    file.close()
    [user] = read(tmp_path / "j.db").users
    at = time.strftime("%H:%M:%S", time.localtime(EVENING + 8))
    line = f"  no mail on new by {at}, the end of the move"
    assert line in receipt_lines(user)


def test_mail_without_a_queue_id_is_not_none(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "journal")
    file.run(1.0, 9.0)
    for user, unnamed, deferred in (("alice", 2, []), ("bob", 0, []), ("carol", 1, ["4X1"])):
        file.user(user, "done", 8.0)
        file.receipt(user, parked_from=2.0, parked_until=8.0, unnamed=unnamed, deferred=deferred, requeued=deferred)
    file.close()
    found = read(tmp_path / "journal")
    lines = " ".join(" ".join(report_lines(found)).split())
    unknown = "3 deferrals without a queue id, for 2 users: look into the queue; 0 uncertain deliveries"
    assert f"mail 1 deferred for 1 user, 1 requeued, and {unknown}" in lines
    alice, bob, _ = found.users
    assert "  2 deferrals of mail whose queue id is unknown" in receipt_lines(alice)
    assert not any("unknown" in line for line in receipt_lines(bob))
    assert report_document(found)["users"]["alice"]["unnamed"] == 2  # type: ignore[index]


def test_users_of_a_run_that_died_are_not_forgotten(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "j")
    journal.run(EVENING, None)
    journal.user("u", "final_sync", EVENING + 9)
    journal.step("u", "block", EVENING, EVENING + 1)
    journal.close()
    died, running = read(tmp_path / "j"), read(tmp_path / "j", running=True)
    said = " ".join(" ".join(report_lines(died)).split())
    assert "1 under way, with no run at work: run the same command again." in said
    assert "offline since" in report_page(died, EVENING) and 'id="left"' in report_page(died, EVENING)
    assert report_lines(running)[0] == "0 of 1 user moved to new. 1 under way."
    assert 'id="left"' not in report_page(running, EVENING)


def test_many_runs_are_few_lines(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "j")
    for number in range(12):
        journal.run(EVENING + number, None if number < 11 else EVENING + 99, None if number < 11 else "1 done")
    journal.user("u", "done", EVENING + 99, run=12)
    journal.close()
    found = read(tmp_path / "j")
    lines = report_lines(found)
    assert "runs       9 before" in lines
    assert sum("(died)" in line for line in lines) == 2
    assert "(1 done)" in " ".join(lines)
    page = Page(report_page(found, EVENING))
    assert "9 before" in page.text and page.text.count("died") == 11


def test_no_user_at_all(tmp_path: Path) -> None:
    made_journal(tmp_path / "j", 0)
    found = read(tmp_path / "j")
    assert report_lines(found)[0] == "No user has been taken up yet."
    assert "Nobody has been moved yet." in Page(report_page(found, EVENING)).text


def test_the_document_holds_everything(night: Path) -> None:
    found = read(night)
    document = json.loads(json.dumps(report_document(found)))
    assert document["counts"] == {"done": 295, "failed": 4, "needs_attention": 1}
    assert len(document["users"]) == 300
    user = document["users"][found.slowest[0].user]
    assert user["outages"][-1]["seconds"] == round(found.slowest[0].downtime or 0, 3)
    assert [step["step"] for step in user["steps"]][:3] == ["sync", "preflight", "park"]
    assert list(report_document(found, [found.users[5].user])["users"]) == [found.users[5].user]  # type: ignore[call-overload]


def test_a_receipt_is_the_whole_story_of_a_user(night: Path) -> None:
    found = read(night)
    [user] = found.in_state("needs_attention")
    text = "\n".join(receipt_lines(user))
    assert "offline NOW" in text
    assert "makegdbm: /etc/perdition/popmap.gdbm.new: No space left on device" in text
    for step in ("sync", "park", "final sync", "redirect"):
        assert re.search(rf"(?m)^{step} +1 ", text)
    evil = next(user for user in found.users if EVIL in user.user)
    assert all(line.isprintable() for line in receipt_lines(evil))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_page_is_written_for_its_owner_alone(night: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    os.umask(os.umask(0o022))
    outcome = report(str(night), html=str(page))
    assert outcome.lines[-1] == f"written: {page}"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["report.html"]


def test_what_cannot_be_done_is_said(night: Path, tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"/nowhere/report.html: No such file or directory: the page was not written"):
        report(str(night), html=f"{tmp_path}/nowhere/report.html")
    with pytest.raises(Failed, match="/dev/null: is no file"):
        report(str(night), html="/dev/null")
    with pytest.raises(Failed, match="the journal has never heard of nobody, no-one"):
        report(str(night), ["nobody", "no-one"])


# --- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What is in a page: every element closed, its text, and what it refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.pieces: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def test_the_page_is_whole_and_needs_nothing_else(night: Path) -> None:
    found = read(night)
    text = report_page(found, EVENING)
    page = Page(text)
    assert page.count["details"] == 300 == len([name for name in page.ids if re.fullmatch(r"u\d+", name)])
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids) and {link[0] for link in page.links} == {"#"}
    assert not {"script", "link", "img", "iframe", "object", "form"} & page.count.keys()
    assert not {name for name in page.attributes if name.startswith("on") or name == "src"}
    assert not re.search(r"url\(|@import|https?:", text)
    # nothing of what the journal holds is anything but text
    assert EVIL not in text and "<script" not in text
    assert "<script>alert(1)</script>&\"'`\\x1b[31m@example.org" in page.text
    assert "\x1b" not in text
    for user in found.users:
        assert user.user in page.text or EVIL in user.user
    for user in found.in_state("failed", "needs_attention"):
        for step in user.failures:
            assert (step.output or "") in page.text
    for word in ("last on old", "parked", "deferred", "requeued", "uncertain", "first on new", "final sync"):
        assert word in page.text


CHROMIUM = shutil.which("chromium")
LOOK = """<script>
parent.document.title = "LOOK " + JSON.stringify({
  wide: document.documentElement.scrollWidth, window: innerWidth, scripts: document.scripts.length,
  users: document.querySelectorAll("details").length, bars: document.querySelectorAll("rect.column").length,
  page: getComputedStyle(document.body).backgroundColor, text: getComputedStyle(document.body).color,
  cut: [...document.querySelectorAll("svg.chart text")].filter(t => getComputedStyle(t).display != "none")
    .filter(t => t.getBoundingClientRect().right > innerWidth + 1 || t.getBoundingClientRect().left < -1).length});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="not installed: chromium; to install: sudo tests/e2e/install.sh")
@pytest.mark.parametrize("users", [300, 0])
@pytest.mark.parametrize("width, dark", [(1400, False), (400, True)])
def test_a_browser_shows_it_whole(night: Path, tmp_path: Path, users: int, width: int, dark: bool) -> None:
    """Nothing sticks out, however narrow the window; dark if the reader likes it dark."""
    source = night
    if users == 0:
        source = tmp_path / "none.db"
        made_journal(source, 0)
    # in a frame, as a window of Chromium has at least 500 pixels
    inner = escape(report_page(read(source), EVENING) + LOOK)
    scheme = "dark" if dark else "light"
    frame = f'<iframe width="{width}" height="900" style="border: 0; color-scheme: {scheme}" srcdoc="{inner}"></iframe>'
    (tmp_path / "page.html").write_text(f'<!DOCTYPE html><meta charset="utf-8"><title></title>{frame}', "utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += ["--window-size=1500,1000", f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/page.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    match = re.search(r"<title>LOOK (.*?)</title>", done.stdout)
    assert match is not None, done.stdout[:500] + done.stderr[-2000:]
    seen = json.loads(match[1])
    assert seen["window"] == width
    assert seen["wide"] <= width
    assert seen["scripts"] == 1, "ours, and none that came from the journal"
    assert seen["users"] == users
    assert (seen["bars"] > 5) == (users > 0)
    assert seen["cut"] == 0
    light = ("rgb(255, 255, 255)", "rgb(27, 31, 36)")
    assert ((seen["page"], seen["text"]) == light) is not dark
