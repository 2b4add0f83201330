"""A site's own commands, as a plan names them: a script that writes down how it was called, and does as told."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.proxy import yaml_of

HOOKS = ("sync", "final_sync", "block", "redirect", "unblock", "verify")

_SCRIPT = """\
import json, os, sys, time
site, name, *arguments = sys.argv[1:]
began = time.time()
orders = json.load(open(site + "/orders.json"))
order = next((order for order in orders if order["hook"] == name and order["user"] in (None, arguments[0])), {})
calls = os.open(site + "/calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def write(**more):
    line = {"hook": name, "arguments": arguments, "at": time.time(), "pid": os.getpid(), **more}
    os.write(calls, json.dumps(line).encode() + b"\\n")
write(event="began", environment={k: v for k, v in os.environ.items() if k.startswith("MIGRATE_")})
time.sleep(order.get("sleep", 0))
while order.get("hold") and not os.path.exists(site + "/go"):
    time.sleep(0.01)
if order.get("output"):
    print(order["output"], flush=True)
times = order.get("times")
if times is not None:
    counter = site + "/counter." + name
    count = int(open(counter).read()) if os.path.exists(counter) else 0
    open(counter, "w").write(str(count + 1))
    if count >= times:
        order = {}
write(event="ended", exit=order.get("exit", 0))
sys.exit(order.get("exit", 0))
"""


@dataclass(frozen=True)
class Call:
    """One event of one call: it `began`, or `ended` of itself."""

    hook: str
    arguments: list[str]
    at: float
    event: str
    document: dict[str, Any]

    @property
    def user(self) -> str:
        return self.arguments[0]


class Site:
    """A directory with the script, its orders, its calls, a plan and the journal."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="lps", dir="/tmp")
        self.script = os.path.join(self.directory, "hook.py")
        Path(self.script).write_text(_SCRIPT)
        self.journal = os.path.join(self.directory, "migrate.db")
        self._orders: list[dict[str, Any]] = []
        self._write_orders()

    def hook(self, name: str, *arguments: str) -> list[str]:
        """The argument list of a hook; by default it is given the user alone."""
        return [sys.executable, "-IS", self.script, self.directory, name, *(arguments or ("{user}",))]

    def plan(self, *, name: str = "plan.yml", **values: object) -> str:
        """Writes a plan; a hook that is None is left out. Returns its path."""
        given: dict[str, object] = {
            "from": "old", "to": "new", "park": "reject", "requeue": "no", "journal": self.journal, "drain_timeout": 20,
            **{hook: self.hook(hook) for hook in HOOKS}, **values,
        }  # fmt: skip
        path = os.path.join(self.directory, name)
        lines = []
        for key, value in given.items():
            if isinstance(value, list):
                lines.append(f"{key}: {json.dumps(value)}\n")
            elif isinstance(value, Mapping):
                inner = ", ".join(f"{each}: {json.dumps(what)}" for each, what in value.items())
                lines.append(f"{key}: {{{inner}}}\n")
            elif value is not None:
                lines.append(f"{key}: {yaml_of(value)}")
        Path(path).write_text("".join(lines))
        return path

    def order(self, hook: str, user: str | None = None, **values: Any) -> None:
        """What the hook does from now on: `exit`, `sleep`, `output`; `times`: how often; `hold`: until `let_go`."""
        self._orders.insert(0, {"hook": hook, "user": user, **values})
        self._write_orders()

    def let_go(self) -> None:
        Path(self.directory, "go").touch()

    def no_orders(self) -> None:
        self._orders = []
        self._write_orders()

    def _write_orders(self) -> None:
        new = os.path.join(self.directory, "orders.new")
        Path(new).write_text(json.dumps(self._orders))
        os.rename(new, os.path.join(self.directory, "orders.json"))

    def calls(self, event: str = "began") -> list[Call]:
        try:
            text = Path(self.directory, "calls").read_text()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in text.splitlines()]
        return [
            Call(each["hook"], each["arguments"], each["at"], each["event"], each)
            for each in found
            if each["event"] == event
        ]

    def hooks_of(self, user: str) -> list[str]:
        return [call.hook for call in self.calls() if call.user == user]

    def wait_for(self, hook: str, users: Sequence[str] = (), timeout: float = 20.0) -> None:
        """Until the hook was called, for one of `users` if there are any."""
        latest = time.monotonic() + timeout
        while not any(call.hook == hook and (not users or call.user in users) for call in self.calls()):
            assert time.monotonic() < latest, f"{hook} was not called within {timeout} s"
            time.sleep(0.01)
