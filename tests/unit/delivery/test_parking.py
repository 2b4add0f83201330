# SPDX-License-Identifier: GPL-3.0-or-later
"""Places on hold that several processes share: with real processes, since the kernel keeps the count."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lmtp_proxy.delivery.parking import Parking, SharedPlaces

# Takes as many places as it can get of its second argument, says how many, and keeps them until its stdin ends.
TAKE = """
import sys
from lmtp_proxy.delivery.parking import SharedPlaces
places = SharedPlaces(int(sys.argv[1]))
taken = 0
while places.take(int(sys.argv[2])) is not None:
    taken += 1
print(taken, flush=True)
sys.stdin.read()
"""


@contextmanager
def taker(handle: int, limit: int) -> Iterator[int]:
    """Another process, and how many places it got."""
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(handle), str(limit)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(handle,),
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()  # as a crash would: it gives nothing back itself
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_limit_holds_over_processes_and_a_death_gives_back() -> None:
    handle = os.memfd_create("test")
    try:
        places = SharedPlaces(handle)
        mine = places.take(3)
        assert mine is not None
        with taker(handle, 3) as theirs:
            assert theirs == 2 and places.take(3) is None
            places.give_back(mine)
            with taker(handle, 3) as third:
                assert third == 1 and places.take(3) is None
            assert places.take(3) == mine
        assert [places.take(3), places.take(3)].count(None) == 0 and places.take(3) is None
    finally:
        os.close(handle)


def test_sessions_of_one_process_count_too() -> None:
    handle = os.memfd_create("test")
    try:
        for parking in (Parking(), Parking(SharedPlaces(handle))):
            with ExitStack() as stack:
                assert [stack.enter_context(parking.place(2)) for _ in range(3)] == [True, True, False]
                assert len(parking) == 2
            assert len(parking) == 0
            with parking.place(0) as granted:
                assert not granted
            with parking.place(1) as granted:
                assert granted
        with taker(handle, 2) as theirs:
            assert theirs == 2
            with parking.place(2) as granted:
                assert not granted and len(parking) == 0
    finally:
        os.close(handle)
