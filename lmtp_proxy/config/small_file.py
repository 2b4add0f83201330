# SPDX-License-Identifier: GPL-3.0-or-later
"""A file that a key names, read whole with the configuration: a regular one, and not a large one."""

import os
import stat


def read_small_file(path: str, most: int) -> tuple[bytes, int]:
    """Its octets, at most so many, and its permission bits. Raises OSError; ValueError with no part of the content."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # to open a FIFO would wait for its writer
        raise ValueError("is not a regular file")
    with open(path, "rb") as file:
        octets = file.read(most + 1)
    if len(octets) > most:
        raise ValueError(f"is larger than {most} octets")
    return octets, stat.S_IMODE(status.st_mode)
