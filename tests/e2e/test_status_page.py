# SPDX-License-Identifier: GPL-3.0-or-later
"""The status page in a real browser, light and dark, narrow and wide, with JavaScript and without, under load.

Screenshots are left in LMTP_PROXY_SCREENSHOTS, if that is set, for somebody to look at.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.browser import Browser, Page, chromium
from tests.support.control import Control, add_control
from tests.support.http import add_metrics
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import HEALTHY, Await, Close, Pause

LONG = "a-backend-with-a-name-that-is-much-longer-than-anybody-would-think-of-in-a-good-mood"
NOT_FITTING = """
    [...document.querySelectorAll("main *")].filter(function (each) {
      var box = each.getBoundingClientRect();
      return box.width > 0 && !each.closest("svg") && !each.closest("thead")
        && (box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5
            || (each.matches("td, .card") && each.scrollWidth > each.clientWidth + 1));
    }).map(function (each) { return each.tagName + "." + each.className + ": " + each.textContent.slice(0, 60); })
"""


@dataclass
class Site:
    """A proxy that has seen a bit of everything. url: of its page."""

    proxy: ProxyProcess
    control: Control
    url: str


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    go = threading.Event()
    with FakeBackend(replace(HEALTHY, final=(Pause(0.01), *HEALTHY.final))) as old, FakeBackend(transport="tcp") as new:
        users = {f"u{number:04d}@example.org": "old" for number in range(3000)}
        users |= {"slow@example.org": LONG, "dead@example.org": "dead"}
        users |= {"held@example.org": "hold", "no@example.org": "reject"}
        with (
            FakeBackend(replace(HEALTHY, final=(Await(go), *HEALTHY.final))) as slow,
            FakeBackend(replace(HEALTHY, final=(Close(),))) as lossy,
        ):
            stores = {"old": old, "new": new, LONG: slow, "lossy": lossy}
            users["lost@example.org"] = "lossy"
            config = config_of(stores, users, idle_timeout=30, hostname="mail-delivery.long-name.example.org")
            config["backends"]["dead"] = {"socket": "/nonexistent/lmtp"}
            proxy = ProxyProcess(config, workers=2)
            add_control(proxy)
            host, port = add_metrics(proxy)
            with proxy:
                control = Control(proxy)
                with proxy.client() as client:
                    for number in range(40):
                        client.deliver("s@x", [f"u{number:04d}@example.org"])
                    for name in ("dead", "no", "lost", "nobody"):
                        client.deliver("s@x", [f"{name}@example.org"])
                for number in range(12):
                    names = [f"u{each:04d}@example.org" for each in range(number * 50, number * 50 + 50)]
                    proxy.config["users"] |= dict.fromkeys(names, "new")
                    proxy.write_config()
                    control.post("/reload")
                    control.post("/drain", {"users": names, "timeout": 10})
                proxy.config["users"]["x@example.org"] = "nowhere"
                proxy.write_config()
                control.ask("POST", "/reload")
                waiting = [proxy.client(timeout=30) for _ in range(5)]
                for client in waiting:
                    client.envelope("s@x", ["slow@example.org"])
                    client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
                yield Site(proxy, control, f"http://{host}:{port}/")
                go.set()
                for client in waiting:
                    client.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("needs chromium: sudo tests/e2e/install.sh")
    with Browser(program) as found:
        yield found


def size_of(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "without"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 400, 768, 1024, 1400, 1920])
def test_it_fits_and_nothing_complains(
    site: Site, browser: Browser, tmp_path: Path, width: int, dark: bool, scripts: bool
) -> None:
    page = Page(browser, width, dark=dark, scripts=scripts)
    page.open(site.url)
    assert page.evaluate("document.documentElement.scrollWidth") == width, "it must not scroll sideways"
    assert page.evaluate(NOT_FITTING) == []
    text = page.evaluate("document.querySelector('main').innerText").lower()
    for words in ("final dot", "refused", "drained", "uncertain", LONG, "dead is down", "2 of 2", "50 old → new"):
        assert words in text, words
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, back.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (brightness < 150) if dark else (brightness > 600)
    assert page.complaints() == []
    assert {url for url in page.requested() if not url.startswith("data:")} == {site.url}
    directory = Path(os.environ.get("LMTP_PROXY_SCREENSHOTS", tmp_path))
    picture = directory / f"status-{width}-{'dark' if dark else 'light'}-{'js' if scripts else 'nojs'}.png"
    page.screenshot(str(picture))
    shown, height = size_of(picture)
    assert shown == width and height > 600
    if width >= 1400:
        assert height < 1500, "on one screen, or nearly so"


@pytest.fixture(scope="module")
def migrating() -> Iterator[Site]:
    """A proxy in the midst of a migration, of whose users some have failed."""
    with FakeBackend() as old, FakeBackend() as new:
        users = {f"u{number:04d}@example.org": "new" if number < 588 else "old" for number in range(3000)}
        proxy = ProxyProcess(config_of({"old": old, "new": new}, users, hostname="mx.example.org"))
        add_control(proxy)
        host, port = add_metrics(proxy)
        with proxy:
            control = Control(proxy)
            control.post(
                "/migration",
                {"from": "old", "to": "new", "running": True, "seconds": 1834.5, "total": 3000, "before": 0,
                 "done": 588, "copied": 40, "failed": 11, "attention": 1},
            )  # fmt: skip
            yield Site(proxy, control, f"http://{host}:{port}/")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_a_migration_stands_on_top(migrating: Site, browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    page = Page(browser, width, dark=dark)
    page.open(migrating.url)
    assert page.evaluate("document.documentElement.scrollWidth") == width and page.evaluate(NOT_FITTING) == []
    text = page.evaluate("document.querySelector('main').innerText")
    parts = ("1 user needs attention", "11 users stay on old", "600 of 3,000 users, 20 %", "19.6 users a minute",
             "about 2 h 2 min left, until 20")  # fmt: skip
    places = [text.lower().find(part) for part in (*parts, "messages")]
    assert -1 not in places and sorted(places) == places, dict(zip(parts, places, strict=False))
    assert page.complaints() == []
    directory = Path(os.environ.get("LMTP_PROXY_SCREENSHOTS", tmp_path))
    page.screenshot(str(directory / f"migration-{width}-{'dark' if dark else 'light'}.png"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read(site: Site, browser: Browser, dark: bool) -> None:
    """Contrast of every text to its ground of at least 4.5 (WCAG AA)."""
    page = Page(browser, 1400, dark=dark)
    page.open(site.url)
    found = page.evaluate(
        """
        (function () {
          function light(color) {
            var parts = color.match(/[\\d.]+/g).map(Number).slice(0, 3).map(function (each) {
              each /= 255; return each <= 0.04045 ? each / 12.92 : Math.pow((each + 0.055) / 1.055, 2.4); });
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
          }
          function ground(each) {
            for (; each; each = each.parentElement) {
              var color = getComputedStyle(each).backgroundColor;
              if (!/, 0\\)$/.test(color) && color !== "transparent") return color;
            }
          }
          var bad = [];
          document.querySelectorAll("main *").forEach(function (each) {
            var own = [...each.childNodes].some(function (node) { return node.nodeType === 3 && node.data.trim(); });
            if (!own || each.closest("svg") || each.matches(".zero, figcaption")) return;
            var one = light(getComputedStyle(each).color), other = light(ground(each));
            var contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
            if (contrast < 4.5) bad.push(contrast.toFixed(2) + " " + each.outerHTML.slice(0, 80));
          });
          return bad;
        })()
        """
    )
    assert found == []


def test_it_refreshes_with_scripts_in_place(site: Site, browser: Browser) -> None:
    page = Page(browser, 1000)
    page.open(site.url)
    page.evaluate("window.mark = 1; document.querySelector('main').dataset.old = 'yes'")
    page.until(lambda: page.evaluate("document.querySelector('main').dataset.old === undefined"))
    assert page.evaluate("window.mark") == 1, "the page itself stays, and with it the place that is looked at"
    assert page.evaluate("document.body.className") == ""
    assert page.complaints() == []


def test_it_refreshes_without_scripts(site: Site, browser: Browser) -> None:
    page = Page(browser, 1000, scripts=False)
    page.open(site.url)
    assert page.loaded(15), "the browser loads it anew by itself"
    assert page.complaints() == []


def test_it_says_when_no_answer_comes_any_more(browser: Browser) -> None:
    with FakeBackend() as store:
        proxy = ProxyProcess(config_of({"old": store}, {"a": "old"}))
        host, port = add_metrics(proxy)
        with proxy:
            page = Page(browser, 1000)
            page.open(f"http://{host}:{port}/")
            assert page.evaluate("getComputedStyle(document.getElementById('stale')).display") == "none"
            proxy.stop()
            page.until(lambda: page.evaluate("document.body.className") == "stale")
            said = page.evaluate("document.getElementById('stale').innerText")
            assert said.startswith("No answer from lmtp-proxy for")
            proxy.start()
            page.until(lambda: page.evaluate("document.body.className") == "")
