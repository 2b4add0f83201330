"""Several real proxies on one machine, with the same scripted stores behind them, and the file that names them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.support.backend import FakeBackend
from tests.support.ctl import PROGRAM, Run, controlled, ctl
from tests.support.proxy import ProxyProcess, yaml_of
from tests.support.script import HEALTHY

PATIENCE = 20.0
"""Of the file if a test does not say so: seconds in which a host says something, on a busy machine too."""


class Hosts:
    """Proxies mx1, mx2, ... and `file`, by which each is reached by a command of this machine.

    patience: as it stands in the file.
    """

    def __init__(
        self, users: Mapping[str, str], *, size: int = 3, patience: float = PATIENCE, **settings: object
    ) -> None:
        self.directory = tempfile.mkdtemp(prefix="lpf", dir="/tmp")
        self.file = os.path.join(self.directory, "fleet.yml")
        self.patience = patience
        self.old, self.new = FakeBackend(), FakeBackend()
        self.names = [f"mx{number}" for number in range(1, size + 1)]
        self.proxies: dict[str, ProxyProcess] = {}
        try:
            for name in self.names:
                stores = {"old": self.old, "new": self.new}
                self.proxies[name] = controlled(stores, users, **{"max_removed": 100000, **settings})
                self.proxies[name].start()
            self.commands: dict[str, list[str]] = {name: self.command(name) for name in self.names}
            self.write()
        except BaseException:
            self.__exit__(RuntimeError, None, None)
            raise

    def command(self, name: str) -> list[str]:
        """What runs lmtp-proxyctl for that proxy."""
        return [sys.executable, str(PROGRAM), "-c", self.proxies[name].config_path]

    def write(self, text: str | None = None) -> None:
        """The file: `text`, or what `commands` holds now."""
        lines = [f"patience: {self.patience:g}", "hosts:"]
        lines += [f"  {name}: {json.dumps(command)}" for name, command in self.commands.items()]
        Path(self.file).write_text("\n".join(lines) + "\n" if text is None else text)

    def impatient(self, least: float = 3.0) -> None:
        """The patience of the file is as short as the machine allows now; a host that is well must be in time."""
        self.patience = round(min(PATIENCE, max(least, 3 * self.ctl("status").seconds)), 1)
        self.write()

    def instead(self, name: str, script: str) -> None:
        """This host is reached by a shell script whose "$@" is what is asked of it; `$real` runs the real command."""
        path = Path(self.directory) / f"to-{name}"
        real = " ".join(self.command(name))
        path.write_text(f"#!/bin/sh\nreal='{real}'\n{script}\n")
        path.chmod(0o755)
        self.commands[name] = [str(path)]
        self.write()

    def as_new(self) -> None:
        """Users, stores and commands as at the beginning."""
        self.old.script = self.new.script = HEALTHY
        for store in (self.old, self.new):
            store.forget()
        for name, proxy in self.proxies.items():
            if self.text(name) != yaml_of(proxy.config):
                assert "refused" not in proxy.reload()
        self.commands = {name: self.command(name) for name in self.names}
        self.patience = PATIENCE
        self.write()

    def ctl(self, *arguments: str, text: str | None = None) -> Run:
        return ctl("--fleet", self.file, *arguments, text=text)

    def text(self, name: str) -> str:
        return Path(self.proxies[name].config_path).read_text()

    def line(self, name: str, user: str) -> str | None:
        """The backend on the user's line in that host's file."""
        for line in self.text(name).splitlines():
            key, _, backend = line.strip().rpartition(": ")
            if key.strip('"') == user:
                return backend
        return None

    def lines(self, user: str) -> list[str | None]:
        return [self.line(name, user) for name in self.names]

    def routes(self, user: str) -> list[str | None]:
        """The backend that is in force on each."""
        return [
            ctl("-c", self.proxies[name].config_path, "--json", "lookup", user).document["backend"]
            for name in self.names
        ]

    def delivered(self, user: str, name: str) -> str:
        """The store that a mail for the user reaches now by that host; its answer if none."""
        before = [len(store.transactions()) for store in (self.old, self.new)]
        with self.proxies[name].client() as client:
            said = client.deliver("after@x", [user]).verdict(0)
            client.quit()
        if not said.positive:
            return said.text
        after = [len(store.transactions()) for store in (self.old, self.new)]
        return {(1, 0): "old", (0, 1): "new"}[after[0] - before[0], after[1] - before[1]]

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self.proxies.values():
            proxy.__exit__(kind, value, trace)
        self.old.stop()
        self.new.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
