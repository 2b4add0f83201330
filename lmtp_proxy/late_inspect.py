# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports without the module `inspect`, which brings Python's parser and disassembler: a megabyte, and 10 ms.

What is imported meanwhile gets a stand-in, which loads `inspect` when more is asked of it than a module of ours or of
gevent does at its import. All others find `inspect` as ever. It does not know who imports what.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

_NAME = "inspect"


class _StandIn(ModuleType):
    """`dataclasses` asks it for nothing, unless a class has no docstring (from Python 3.12 on: for each class)."""

    @staticmethod
    def getfullargspec(function: FunctionType) -> tuple[list[str]]:
        """The names of its arguments. gevent.monkey (22.10) wants them at its import, for the text of --help."""
        code = function.__code__
        return (list(code.co_varnames[: code.co_argcount]),)

    def __getattr__(self, name: str) -> Any:
        _end(self)
        import inspect

        return getattr(inspect, name)


@contextmanager
def without_inspect() -> Iterator[None]:
    """Around imports."""
    if _NAME in sys.modules:
        yield
        return
    sys.modules[_NAME] = stand_in = _StandIn(_NAME)
    try:
        yield
    finally:
        _end(stand_in)


def _end(stand_in: _StandIn) -> None:
    """From now on whoever imports `inspect` gets that."""
    if sys.modules.get(_NAME) is stand_in:
        del sys.modules[_NAME]
