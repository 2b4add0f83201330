# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: the bench's C programs, and a private directory whose processes end with the test."""

from collections.abc import Iterator

import pytest

from bench.processes import Stage
from bench.tools import build, compiler


@pytest.fixture(scope="session")
def programs() -> None:
    if compiler() is None:
        pytest.skip("no C compiler is here: apt install gcc libc6-dev")
    build()


@pytest.fixture
def stage(programs: None) -> Iterator[Stage]:
    with Stage() as stage:
        yield stage
