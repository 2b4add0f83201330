# SPDX-License-Identifier: GPL-3.0-or-later
"""What the status page and the report share: nothing in a text is markup, and each colour that is used is there."""

import re

import pytest

from lmtp_proxy.ctl.migrate import report_html
from lmtp_proxy.web import frame
from lmtp_proxy.web.markup import KINDS, LIGHT, STYLE, document, escape, escape_lines


def test_escaping() -> None:
    assert escape("<a href='x'>&\"") == "&lt;a href=&#x27;x&#x27;&gt;&amp;&quot;"
    assert escape("a\nb\x1b\u202e") == r"a\nb\x1b\u202e"
    assert escape(7) == "7"
    assert escape_lines("a\tb\r\n<c>\x07") == "a       b\n&lt;c&gt;\\x07"


def test_a_document() -> None:
    text = document("<t>", "b{}", "<p>hello</p>", "<link>")
    assert text.startswith("<!DOCTYPE html>\n<html lang=") and text.endswith("<body><p>hello</p></body></html>\n")
    assert "<title>&lt;t&gt;</title>" in text and f"<style>{STYLE}b{{}}</style>" in text and "<link>" in text


def names(text: str) -> set[str]:
    return set(re.findall(r"(--[a-z]+[0-9]?):", text))


def test_light_and_dark_have_the_same_colours() -> None:
    light, dark = STYLE.split("@media(prefers-color-scheme:dark)")
    assert names(light) == names(dark) == names(LIGHT)
    assert {f"--k{kind}" for kind in range(KINDS)} < names(LIGHT)


@pytest.mark.parametrize("style", [STYLE, frame._STYLE, report_html._STYLE])
def test_each_colour_has_a_value(style: str) -> None:
    used = set(re.findall(r"var\((--[^)]*)\)", style))
    assert used and used <= names(LIGHT)
