# SPDX-License-Identifier: GPL-3.0-or-later
"""A page of documentation that can be run: its files are written, its commands executed, their output compared.

In the page a file is a fenced block right after a line that ends with its absolute path in backticks and a colon; a
session is a block fenced as `console` with `# command` lines, `> ` lines that continue them, and what they print.
Knows nothing about mail.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

_BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_PATH = re.compile(r"`(/[^`]+)`:$")
_ANYTHING = "..."
"""A line of expected output that stands for any number of lines."""


@dataclass(frozen=True, slots=True)
class File:
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    text: str
    output: list[str]
    """The lines that the page says it prints, on either stream."""


def steps(page: str, language: str = "console") -> Iterator[File | Command]:
    """The files and the sessions of the page, in its order; `language` is what the sessions are fenced as."""
    for block in _BLOCK.finditer(page):
        path = _PATH.search(block["before"])
        if path:
            yield File(path[1], block["text"])
        elif block["language"] == language:
            yield from _session(block["text"])


def _session(text: str) -> Iterator[Command]:
    command, output = "", list[str]()
    for line in text.splitlines():
        if line.startswith("# "):
            if command:
                yield Command(command, output)
            command, output = line[2:], []
        elif line.startswith("> ") and not output:
            command += "\n" + line[2:]
        else:
            assert command, f"output without a command: {line}"
            output.append(line)
    assert command, f"a session without a command: {text}"
    yield Command(command, output)


class Shell:
    """One bash for all commands, with stdout and stderr in one. Use as a context manager."""

    _MARK = "-- end of command --"

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["/bin/bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={**os.environ, **environment},
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

    def run(self, command: str) -> list[str]:
        """What the command printed; its exit status is `$?` for the next one."""
        assert self._process.stdin is not None and self._process.stdout is not None
        # the command itself must not read the rest of our commands
        self._process.stdin.write(
            f"{{ {command}\n}} </dev/null\nstatus=$?; printf '\\n{self._MARK}\\n'; (exit $status)\n"
        )
        lines: list[str] = []
        for line in self._process.stdout:
            if line.rstrip("\n") == self._MARK:
                break
            lines.append(line.rstrip())
        while lines and not lines[-1]:
            lines.pop()
        return lines


def differences(expected: list[str], got: list[str], alike: Mapping[str, str]) -> list[str]:
    """Where the output is not what the page shows. Numbers and spaces may differ, and what `alike` (a regular
    expression -> what stands for all it finds) calls alike; nothing else."""
    if _ANYTHING in expected:
        position = expected.index(_ANYTHING)
        rest = expected[position + 1 :]
        end = max(position, len(got) - len(rest))
        return differences(expected[:position], got[:position], alike) + differences(rest, got[end:], alike)
    return [
        f"shown: {shown}\n  got: {seen}"
        for shown, seen in zip_longest(expected, got, fillvalue="(nothing)")
        if _likeness(shown, alike) != _likeness(seen, alike)
    ]


def _likeness(line: str, alike: Mapping[str, str]) -> str:
    for pattern, instead in alike.items():
        line = re.sub(pattern, instead, line)
    line = re.sub(r"\b(?:[0-9a-f]{8}|[0-9a-f]{12})\b", "0", line)  # session ids and the beginnings of digests
    line = re.sub(r"\d+(?:[.,:]\d+)*", "0", " ".join(line.split()))
    return re.sub(r"\b0 (?:ms|s|min)\b", "0 s", line)  # how long it took
