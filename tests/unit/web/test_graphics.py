# SPDX-License-Identifier: GPL-3.0-or-later
"""Curves, bars and histograms: inside their frames, and well-formed whatever their names are."""

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from lmtp_proxy.text import span
from lmtp_proxy.web.graphics import Part, bar, curve, histogram, key


def whole(text: str) -> ElementTree.Element:
    """SVG in HTML is written as XML is."""
    return ElementTree.fromstring(text)


@given(st.lists(st.floats(0, 1e12), max_size=130), st.lists(st.floats(0, 1e12), max_size=130))
def test_a_curve_stays_within_its_frame(one: list[float], other: list[float]) -> None:
    text = curve("a", 130, ("sent", one), ("failed", other), scale=str)
    whole(text)
    for path in re.findall(r'class="line \w+" d="M([^"]*)"', text):
        for point in path.split("L"):
            x, y = map(float, point.split())
            assert -0.1 <= x <= 240.1 and 0 <= y <= 40


@given(st.lists(st.integers(0, 10**7), max_size=12))
def test_a_bar_is_full_and_shows_every_part(counts: list[int]) -> None:
    parts = [Part(f"p{index}", count, "k0") for index, count in enumerate(counts)]
    text = bar("b", parts, sum(counts))
    rectangles = re.findall(r'class="k0" x="([\d.]+)" y="0" width="([\d.]+)"', text)
    found = [(float(x), float(width)) for x, width in rectangles]
    assert len(found) == sum(count > 0 for count in counts)
    if found:
        assert all(width >= 3.9 for _, width in found)
        assert abs(found[-1][0] + found[-1][1] - 1000) < 1


@given(st.text(), st.text())
def test_names_are_text(name: str, label: str) -> None:
    svg = whole(bar(label, [Part(name, 1, "k0"), Part("rest", 10**6, "k1")], 10**6 + 1))
    assert len(svg) == 3 and all(len(rect) <= 1 for rect in svg)
    assert svg[1][0].text is not None and svg[1][0].text.endswith(": 1 (< 0.1 %)")
    assert whole(key("k0"))[0].attrib["class"] == "k0"


def test_a_bar_of_durations_without_its_ground() -> None:
    svg = whole(bar("b", [Part("sync", 0.25, "k1"), Part("none", 0.0, "k2")], 0.5, scale=span, ground=False, thin=True))
    assert svg.attrib["class"] == "bar thin" and [rect.attrib["class"] for rect in svg] == ["k1"]
    assert svg[0][0].text == "sync: 250 ms (50 %)"
    assert abs(float(svg[0].attrib["width"]) - 500) < 5


@given(st.lists(st.integers(0, 10**5), min_size=1, max_size=60).filter(any), st.floats(0.01, 1e5))
def test_a_histogram_stays_within_its_page(amounts: list[int], marked: float) -> None:
    bins = [(10 ** (index / 10 - 2), 10 ** ((index + 1) / 10 - 2), amount) for index, amount in enumerate(amounts)]
    svg = whole(histogram("<h>", bins, [("<median>", marked)], noun="user", edge="{:g} s".format, scale=span))
    columns = [each for each in svg if each.attrib.get("class") == "column"]
    assert len(columns) == sum(amount > 0 for amount in amounts)
    height = float(svg.attrib["height"])
    for column in columns:
        x, width = (float(column.attrib[name].rstrip("%")) for name in ("x", "width"))
        assert x >= -0.1 and x + width <= 100.1
        assert 0 <= float(column.attrib["y"]) <= float(column.attrib["y"]) + float(column.attrib["height"]) <= height
    assert f"<median> {span(marked)}" in [each.text for each in svg]
