# SPDX-License-Identifier: GPL-3.0-or-later
"""Message data on the wire (RFC 5321 section 4.5.2): where it ends, whether that is beyond doubt, how large it is.

Octets in, octets out, stuffing included. Only CRLF.CRLF ends the data. Cyrus 3.6 and Dovecot 2.3 also end theirs on a
lone dot between other line ends (seen on the wire), so a message that holds one could become two behind us: such data
is ambiguous, and from that dot on nothing more of it comes out. It does not know headers, and keeps at most two octets.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Where dots are denser than one in so many octets, a line end with a dot behind it is looked for, at 3 GB/s. Dots alone
# are found at 54 GB/s, but then each costs 0.1 us.
_DENSE = 1024
# Cyrus 3.6 reads at most 8189 octets of a line at a time and takes a lone dot at the start of each piece for the end:
# measured, the rest of the message then ran as commands. Where its pieces start cannot be told from outside (the first
# one wherever its header parser gives up, and a CR that would end one is left for the next), so no dot so far in a line
# may stand at its end.
_LONG = 8189
_DOT_AT_LINE_END = re.compile(rb"\.(?=[\r\n])")
_END = b"\r\n.\r\n"
FINAL_DOT = b".\r\n"
"""The end of data; what stands before it ends with CRLF, or is nothing."""
_LINE_END = (b"\r", b"\n", b"")
_FEW = 16  # dots that are looked at one by one
_BEHIND = len(_END) + len(b"QUIT\r\n")  # octets: what a client may have written along with the end


def whole_message(octets: bytes) -> tuple[int, int] | None:
    """Size and end of a message that came at once, so that MessageData would say the same, only slower: what most are.

    None for all that is not plainly one. The end is where the final dot stands.
    """
    end = octets.rfind(_END, -_BEHIND) + 2
    if end < 2 or end > _LONG:  # so no line is a very long one
        return None
    find = octets.find
    dot = find(b".")
    if dot < 2:  # what stands before it is not in these octets
        return None
    stuffed = 0
    for _ in range(_FEW):
        if dot == end:
            return end - stuffed, end
        if octets[dot - 1] not in b"\r\n":
            dot = find(b".", dot + 1)
        elif octets[dot + 1] in b"\r\n":
            return None  # an end that is nobody's, or an earlier one
        else:
            stuffed += octets.startswith(b"\r\n", dot - 2)
            dot = find(b".", dot + 2)
    # No further one at the start of a line but the last.
    return (end - stuffed, end) if find(b"\n.", dot - 1) == end - 1 and find(b"\r.", dot - 1, end) < 0 else None


@dataclass(slots=True)
class MessageData:
    """The data of one message, fed as it comes.

    Attributes:
        size: octets so far as RFC 1870 section 3 counts them, without stuffing dots and the final dot.
        ambiguous: a lone dot stood between line ends other than CRLF and CRLF, or a dot at the end of a very long line.
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
    """Octets judged since the last LF, counted up to _LONG."""

    def feed(self, octets: bytes) -> tuple[bytes, bytes]:
        """Take the next octets; return (message octets to pass on, octets behind the final dot).

        The final dot itself never comes out, and nothing from the first ambiguous dot on. Not to be called once
        `ended`.
        """
        # A chunk without a dot holds neither an end nor an attack, and base64 has none: memchr makes the check free.
        if not self._held and b"." not in octets:
            self.size += len(octets)
            self._before = (self._before + octets[-2:])[-2:]
            self._count_column(octets, 0, len(octets))
            return b"" if self.ambiguous else octets, b""

        # No copy, unless what was held or the line end before these octets has a part in it.
        data, begin = octets, 0
        if self._held or octets.find(b".", 0, 2) >= 0:
            data, begin = self._before + self._held + octets, 2
        was_ambiguous = self.ambiguous
        bad = cut = len(data)
        stuffed = 0
        for dot in _dots_at_line_starts(data):
            after_crlf = data.startswith(b"\r\n", dot - 2)
            if data[dot + 1 : dot + 2] in _LINE_END:
                # Alone on its line, or it cannot be judged before more octets come. The end of data is the one case
                # where the line ends on both sides are exactly CRLF and CRLF.
                after = data[dot + 1 : dot + 3]
                if after == b"\r\n" and after_crlf:
                    self.ended = True
                    cut = dot
                    break
                if not after or (after == b"\r" and dot + 2 == len(data)):
                    cut = dot
                    break
                bad = min(bad, dot)
            stuffed += after_crlf
        if self._column + len(data) > _LONG:
            bad, cut = self._judge_long_lines(data, begin, bad, cut)
        self._count_column(data, begin, cut)

        self.ambiguous = was_ambiguous or bad < cut
        self.size += cut - begin - stuffed
        self._before = data[cut - 2 : cut]
        self._held = b"" if self.ended else data[cut:]
        passed = b"" if was_ambiguous else data[begin : min(cut, bad)]
        return passed, data[cut + 3 :] if self.ended else b""

    def ends_in(self, octets: bytes) -> bool:
        """Whether the final dot would come if these octets were fed next. A search, cheap for any octets."""
        return _END in self._before + self._held + octets

    def _judge_long_lines(self, data: bytes, begin: int, bad: int, cut: int) -> tuple[int, int]:
        """`bad`, or a dot before it at the end of a very long line; `cut`, or a dot there with nothing behind yet."""
        start = begin - self._column  # of the line; what was judged of it is not in the data any more
        while (far := max(start + _LONG, begin)) < cut:
            line_end = data.rfind(b"\n", max(start, begin), far)
            if line_end < 0:
                line_end = data.find(b"\n", far)
                if line_end < 0:
                    line_end = len(data)
                    if data.endswith(b"."):
                        cut = min(cut, line_end - 1)
                if match := _DOT_AT_LINE_END.search(data, far, line_end + 1):
                    bad = min(bad, match.start())
            start = line_end + 1
        return bad, cut

    def _count_column(self, data: bytes, start: int, end: int) -> None:
        line_end = data.rfind(b"\n", start, end)
        column = self._column + end - start if line_end < 0 else end - line_end - 1
        self._column = min(column, _LONG)


def _dots_at_line_starts(data: bytes) -> Iterator[int]:
    """Where they are, from the third octet on: the two before each dot are there to be looked at."""
    find = data.find
    dot = find(b".", 2)
    for _ in range(16 + len(data) // _DENSE):
        if dot < 0:
            return
        if data[dot - 1] in b"\r\n":
            yield dot
            dot = find(b".", dot + 2)  # the next octet is at the start of no line
        else:
            dot = find(b".", dot + 1)
    if dot < 0:
        return
    lf, cr = find(b"\n.", dot - 1), find(b"\r.", dot - 1)
    while lf >= 0 or cr >= 0:
        if cr < 0 or 0 <= lf < cr:
            yield lf + 1
            lf = find(b"\n.", lf + 2)
        else:
            yield cr + 1
            cr = find(b"\r.", cr + 2)
