# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/status-page.png: the status page of a real proxy with real mail, in the middle of `lmtp-proxyctl migrate`.

`python -m tests.e2e.status_picture [FILE]` makes it anew, in a minute and a half. It needs chromium. The stores are
scripted, and the commands that copy do nothing but take their time.
"""

import base64
import random
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from tests import ROOT
from tests.support.backend import FakeBackend
from tests.support.browser import Browser, Page, chromium
from tests.support.ctl import controlled, end_ctl, start_ctl
from tests.support.http import add_metrics
from tests.support.proxy import ProxyProcess
from tests.support.script import HEALTHY, Pause

PICTURE = ROOT / "docs" / "status-page.png"
WIDTH, HEIGHT = 1400, 880
_USERS = [f"user{number:04d}@example.org" for number in range(2000)]
_MOVED = _USERS[:900]
_SECONDS = 75.0
_PLAN = """\
from: old
to: new
park: reject
sync: [sleep, "0.1"]
final_sync: [sleep, "1.7"]
journal: {journal}
"""


def _deliver(proxy: ProxyProcess, done: threading.Event, seed: int) -> None:
    chance = random.Random(seed)
    while not done.is_set():
        with proxy.client() as client:
            for _ in range(chance.randint(1, 5)):
                recipients = chance.sample(_USERS, chance.choice((1, 1, 1, 2, 4)))
                text = f"Subject: mail\r\n\r\n{'x' * chance.randint(1000, 20000)}\r\n"
                client.deliver("sender@example.com", recipients, text.encode())
                done.wait(chance.expovariate(4.0))


def take(picture: Path) -> None:
    """Runs all of it and writes the picture. Raises AssertionError if something of it was not as it should be."""
    program = chromium()
    assert program is not None, "it needs chromium: sudo tests/e2e/install.sh"
    slow, quick = (replace(HEALTHY, final=(Pause(seconds), *HEALTHY.final)) for seconds in (0.03, 0.008))
    done = threading.Event()
    with FakeBackend(slow, transport="tcp") as old, FakeBackend(quick, transport="tcp") as new:
        users = {**dict.fromkeys(_USERS, "old"), "postmaster@example.org": "new"}
        proxy = controlled({"old": old, "new": new}, users, hostname="mx1.example.org", idle_timeout=30)
        directory = Path(proxy.directory)
        proxy.config["config"]["receipts"] = str(directory / "receipts.db")
        host, port = add_metrics(proxy)
        with proxy, Browser(program) as browser:
            senders = [threading.Thread(target=_deliver, args=(proxy, done, seed)) for seed in range(8)]
            for sender in senders:
                sender.start()
            plan = directory / "plan.yml"
            plan.write_text(_PLAN.format(journal=directory / "journal.db"))
            (directory / "list").write_text("".join(f"{user}\n" for user in _MOVED))
            run = start_ctl(
                "-c", proxy.config_path, "migrate", str(plan), "--users", str(directory / "list"), "--jobs", "8"
            )
            try:
                time.sleep(_SECONDS)
                assert run.poll() is None, "the migration is over: give it more users"
                page = Page(browser, WIDTH)
                page.open(f"http://{host}:{port}/")
                clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1}
                data = page.call("Page.captureScreenshot", format="png", clip=clip)["data"]
                picture.write_bytes(base64.b64decode(data))
                assert page.complaints() == []
            finally:
                run.terminate()
                end_ctl(run, time.monotonic())
                done.set()
                for sender in senders:
                    sender.join(30)


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
