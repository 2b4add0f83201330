# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of the bench as a value, and as JSON: everything that its tables and the page in docs/ are made from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.offline import NightRun
from bench.processes import BenchError
from bench.stall import Stall
from bench.tables import TableRun
from bench.workloads import Run

DIRECT = "direct"
HAPROXY = "HAProxy TCP"
DOVECOT = "Dovecot LMTP proxy"
OURS = "lmtp-proxy"
BESIDE = "lmtp-proxy, beside"
"""That of another checkout, see `--beside`."""
TWO_WORKERS = "lmtp-proxy, 2 workers"
UNLOGGED = "lmtp-proxy, no delivery log"


@dataclass(frozen=True, slots=True)
class Results:
    """machine: facts about it. versions: of what was measured. missing: what was not, and why."""

    date: str
    quick: bool
    rounds: int
    machine: dict[str, str]
    versions: dict[str, str]
    missing: dict[str, str]
    runs: Sequence[Run] = field(default_factory=list)
    tables: Sequence[TableRun] = field(default_factory=list)
    nights: Sequence[NightRun] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def load(path: Path) -> Results:
    """A run that was written down. BenchError when the file is none."""
    try:
        document = json.loads(path.read_text("utf-8"))
        runs = [Run(**{**run, "opened": tuple(run["opened"]), "peak": tuple(run["peak"])}) for run in document["runs"]]
        tables = [_table(table) for table in document["tables"]]
        nights = [NightRun(**night) for night in document.get("nights", ())]
        return Results(**{**document, "runs": runs, "tables": tables, "nights": nights})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{path}: not the result of a bench: {error!r}") from error


def _table(document: dict[str, Any]) -> TableRun:
    stalls = {name: Stall(**document[name]) if document[name] else None for name in ("idle", "before", "busy")}
    return TableRun(**{**document, **stalls})
