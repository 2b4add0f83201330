# SPDX-License-Identifier: GPL-3.0-or-later
"""The client's octets as command lines, of a limited length: what is longer is thrown away, and the next line is whole.

It knows no commands, and hands out octets that are no lines, as the data of a message, as they are.
"""

from collections.abc import Callable

MAX_COMMAND = 2048
"""Octets of one command line, CRLF included. RFC 5321 asks for 512, and more for each extension."""
TOO_LONG = b"\n"
"""Stands for a line that was thrown away; no real line holds a LF."""


class CommandLines:
    """What has come and was not used.

    Attributes:
        octets: empty if nothing is left.
        position: in `octets`; what stands before it was used.
        skipping: amid a line that is too long.
    """

    __slots__ = ("octets", "position", "skipping")

    def __init__(self) -> None:
        self.octets = b""
        self.position = 0
        self.skipping = False  # amid a line that is too long

    def __len__(self) -> int:
        return len(self.octets) - self.position

    @property
    def rest(self) -> bytes:
        """All that was not used."""
        return self.octets[self.position :] if self.position else self.octets

    def set(self, octets: bytes) -> None:
        """This, and nothing else, was not used."""
        self.octets, self.position = octets, 0

    def next(self, wanted: Callable[[bytes], bool] | None) -> bytes | None:
        """The next line without its line end; None if there is none, or if it is not `wanted` now."""
        octets, start = self.octets, self.position
        end = octets.find(b"\n", start)
        if end < 0:
            if len(octets) - start >= MAX_COMMAND:
                self.skipping = True
            if self.skipping:
                self.set(b"")
            return None
        line = octets[start:end]
        if wanted is not None and not wanted(line):
            return None
        if end + 1 == len(octets):
            self.octets, self.position = b"", 0
        else:
            self.position = end + 1
        if self.skipping or end - start >= MAX_COMMAND:
            self.skipping = False
            return TOO_LONG
        return line.removesuffix(b"\r")
