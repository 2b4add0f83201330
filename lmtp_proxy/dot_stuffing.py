# SPDX-License-Identifier: GPL-3.0-or-later
"""Message data on the wire (RFC 5321 section 4.5.2): where it ends, whether that is beyond doubt, how large it is.

Octets in, octets out, stuffing included. Only CRLF.CRLF ends the data. Cyrus 3.6 and Dovecot 2.3 also end theirs on a
lone dot between other line ends (seen on the wire), so a message that holds one could become two behind us: such data
is ambiguous, and from that dot on nothing more of it comes out. It does not know headers, and keeps at most two octets.
"""

import re
from dataclasses import dataclass

# A dot with a line end on both sides; the end of data is the one case where those are exactly CRLF and CRLF.
_LONE_DOT = re.compile(rb"(?<=[\r\n])\.(?=[\r\n])")
# What cannot be judged before more octets come: a dot after a line end, perhaps with a CR behind it.
_UNDECIDED = re.compile(rb"(?<=[\r\n])\.\r?\Z")
# Cyrus 3.6 takes the stuffing off in pieces of a line, so that a dot at such an offset is a lone dot for it when a line
# end follows: measured, it ended the message there and ran the next lines of it as commands.
_CYRUS_PIECE = 8189
_STUFFED = b"\r\n."
_END = b"\r\n.\r\n"


@dataclass(slots=True)
class MessageData:
    """The data of one message, fed as it comes.

    size: octets so far as RFC 1870 section 3 counts them, without stuffing dots and the final dot.
    ambiguous: a lone dot stood between line ends other than CRLF and CRLF, or where Cyrus cuts a long line.
    ended: the final dot came.
    """

    size: int = 0
    ambiguous: bool = False
    ended: bool = False
    _before: bytes = b"\r\n"
    """The last two octets that were judged. The start of the data counts as after CRLF."""
    _held: bytes = b""
    """A dot that may be alone on its line, perhaps with a CR: not judged yet."""
    _column: int = 0
    """Octets judged since the last LF, or since the last of Cyrus's cuts in a long line; up to _CYRUS_PIECE."""

    def feed(self, octets: bytes) -> tuple[bytes, bytes]:
        """Take the next octets; return (message octets to pass on, octets behind the final dot).

        The final dot itself never comes out, and nothing from the first ambiguous dot on. Not to be called once
        `ended`.
        """
        # A chunk without a dot holds neither an end nor an attack, and base64 has none: memchr makes the check free.
        if not self._held and b"." not in octets:
            self.size += len(octets)
            self._before = (self._before + octets[-2:])[-2:]
            column = (
                len(octets) - 1 - line_end if (line_end := octets.rfind(b"\n")) >= 0 else self._column + len(octets)
            )
            self._column = column and (column - 1) % _CYRUS_PIECE + 1
            return b"" if self.ambiguous else octets, b""

        data = self._before + self._held + octets
        was_ambiguous = self.ambiguous
        bad = cut = len(data)
        if b"\n." in data or b"\r." in data:
            position = 2
            while match := _LONE_DOT.search(data, position):
                dot = match.start()
                if data[dot - 2 : dot + 3] == _END:
                    self.ended = True
                    cut = dot
                    break
                if data[dot + 1 :] == b"\r":
                    break
                bad = min(bad, dot)
                position = dot + 1
            if not self.ended and (undecided := _UNDECIDED.search(data, 2)):
                cut = undecided.start()
        bad, cut = self._judge_long_line(data, bad, cut)

        self.ambiguous = was_ambiguous or bad < cut
        self.size += cut - 2 - data.count(_STUFFED, 0, cut)
        self._before = data[cut - 2 : cut]
        self._held = b"" if self.ended else data[cut:]
        passed = b"" if was_ambiguous else data[2 : min(cut, bad)]
        return passed, data[cut + 3 :] if self.ended else b""

    def _judge_long_line(self, data: bytes, bad: int, cut: int) -> tuple[int, int]:
        """`bad`, or a dot before it that is alone where Cyrus cuts a line; `cut`, or such a dot with nothing behind."""
        start = 2 - self._column
        while start < cut:
            line_end = data.rfind(b"\n", max(start, 2), min(start + _CYRUS_PIECE, cut))
            if line_end >= 0:
                start = line_end + 1
                continue
            end = start + _CYRUS_PIECE
            if end >= cut:
                break
            if data[end : end + 1] == b".":
                if end + 1 == len(data):
                    cut = end
                    break
                if data[end + 1 : end + 2] in (b"\r", b"\n"):
                    bad = min(bad, end)
            start = end
        self._column = cut - start
        return bad, cut
