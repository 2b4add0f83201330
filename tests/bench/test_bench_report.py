# SPDX-License-Identifier: GPL-3.0-or-later
"""The page and its chart are made from the JSON of a run, and from nothing else."""

import json
import re
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.offline import NightRun
from bench.plot import plot
from bench.processes import BenchError
from bench.report import BEGIN, END, as_text, renewed, tables
from bench.results import BESIDE, OURS, Results, load
from tests import ROOT
from tests.bench.test_bench_figures import GOOD, TABLE, results, run

PAGE = ROOT / "docs" / "performance.md"


def whole() -> Results:
    return replace(results([*GOOD, run("HAProxy TCP", "A", 1, 1.0, error="2 lost")], [TABLE]), missing={"x": "apt it"})


def test_a_run_comes_back_from_its_json(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(whole().to_json(), "utf-8")
    assert load(path) == whole()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": [{}], "tables": []}'])
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, "utf-8")
    with pytest.raises(BenchError, match=re.escape(f"{path}: not the result of a bench")):
        load(path)


def test_the_page_is_renewed_between_its_marks_only() -> None:
    page = renewed(f"before\n{BEGIN}\nold\n{END}\nafter\n", whole())
    assert page.startswith(f"before\n{BEGIN}\n") and page.endswith(f"{END}\nafter\n") and "\nold\n" not in page
    assert renewed(page, whole()) == page
    assert "| lmtp-proxy | 250.0 | 250.0-250.0 |" in page
    assert "CPU µs/message" in page and "| 1.0 µs |" in page and "µsers" not in page
    assert "| HAProxy TCP | none counts | 2 lost |" in page
    assert "- not measured: x: apt it" in page
    assert "| 5 | CPU of a message in D / Dovecot | 0.170 | ≤ 0.160 | ≤ 0.080 | **missed** |" in page
    assert re.search(r"^\| date \| 2030-01-01", page, re.MULTILINE)
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_another_checkout_has_a_table_of_its_own() -> None:
    theirs = [run(BESIDE, "B", 1, 125.0), run(BESIDE, "E", 1, 0.0)]
    both = replace(whole(), runs=[*whole().runs, *theirs], tables=[TABLE, replace(TABLE, program=BESIDE)])
    titles = [table.title for table in tables(both)]
    assert titles[-4:] == [
        "F: tables of many users", "F: tables of many users: lmtp-proxy, beside",
        "This checkout and the one beside it", "Targets",
    ]  # fmt: skip
    page = renewed(f"{BEGIN}\n{END}\n", both)
    assert "| figure | this | beside | this/beside | lowest-highest | rounds |" in page
    assert "| B: CPU of a message | 100.0 µs | 125.0 µs | 0.800 | 0.800-0.800 | 1 |" in page
    assert "| E: CPU of a message | 150.0 µs | 0.0 µs | - | - | 1 |" in page
    assert "| lmtp-proxy, beside | 125.0 |" in page
    assert load_of(both) == both
    assert not any("beside" in title for title in (table.title for table in tables(whole())))


def test_migrations_have_a_table_and_are_compared() -> None:
    own = {OURS: (900.0, 100.0, 130.0), BESIDE: (900.0, 200.0, 100.0), "broken": (None, None, None)}
    nights = [NightRun(program, number, ms, "" if ms else "no sqlite") for program, figures in own.items()
              for number, ms in enumerate(figures)]  # fmt: skip
    results = replace(whole(), nights=nights)
    page = renewed(f"{BEGIN}\n{END}\n", results)
    assert "| lmtp-proxy | 115.0 | 100.0-130.0 | 2 |" in page
    assert "| broken | none counts | no sqlite | 0 of 2 |" in page
    assert "| G: own time for which a user is offline | 115.0 ms | 150.0 ms | 0.900 | 0.500-1.300 | 2 |" in page
    assert load_of(results) == results


def load_of(results: Results) -> Results:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "r.json")
        path.write_text(results.to_json(), "utf-8")
        return load(path)


def test_results_of_a_bench_that_knew_no_other_checkout_are_read(tmp_path: Path) -> None:
    document = json.loads(whole().to_json())
    for table in document["tables"]:
        del table["program"]
    del document["nights"]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document), "utf-8")
    assert {table.program for table in load(path).tables} == {OURS}


def test_a_page_without_a_place_is_left_alone() -> None:
    with pytest.raises(BenchError, match="no place for results"):
        renewed("nothing here", whole())


def test_the_columns_of_a_terminal_stand_below_each_other() -> None:
    for table in tables(whole()):
        lines = as_text(table).splitlines()[2:]
        rule = lines[1]
        for gap in (match.start() for match in re.finditer(" {2}", rule)):
            assert all(line[gap : gap + 2].strip() == "" for line in lines), table.title


def test_the_chart_has_a_bar_for_each_program_that_has_a_cost() -> None:
    root = ET.fromstring(plot(whole()))
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in root.iter(f"{space}rect") if bar.get("class") in ("bar", "ours")]
    assert len(bars) == 11, "A 2, B 4, C 2, D 2, E 1"
    assert all(float(bar.get("width", "0")) >= 1 for bar in bars)
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    assert all(float(bar.get("x", "0")) + float(bar.get("width", "0")) < width - 60 for bar in bars)
    assert all(float(bar.get("y", "0")) + float(bar.get("height", "0")) < height for bar in bars)
    assert "prefers-color-scheme: dark" in plot(whole())


def test_the_command_renews_the_docs_from_a_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, path = tmp_path / "performance.md", tmp_path / "r.json"
    page.write_text(f"{BEGIN}\n{END}\n", "utf-8")
    path.write_text(whole().to_json(), "utf-8")
    monkeypatch.setattr(command, "PAGE", page)
    assert command.main(["--from", str(path), "--write-docs"]) == 0
    assert "**missed**" in page.read_text("utf-8") and page.with_suffix(".svg").exists()
    assert re.search(r"^5 .* missed$", capsys.readouterr().out, re.MULTILINE)
    path.write_text("{}", "utf-8")
    assert command.main(["--from", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_of_this_checkout_has_results() -> None:
    _, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    section = rest.partition(END)[0]
    assert all(f"| {number} | " in section for number in range(1, 16))
    assert ET.parse(PAGE.with_suffix(".svg")).getroot().tag.endswith("svg")
    for kept in sorted((ROOT / "bench" / "results" / "kept").glob("*.json")):
        assert json.loads(kept.read_text("utf-8"))["runs"]
