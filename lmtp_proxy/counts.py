# SPDX-License-Identifier: GPL-3.0-or-later
"""What one process counts: plain integers, and histograms that are lists of integers.

Counting must cost a delivery nothing that can be measured, so the numbers are no more than that. What a counter is
called outside, and how it adds over workers, stands beside it in its field; all who show counters read it there, so a
new one is one line. Nothing that a client sends becomes a key, so nothing here can grow.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, NamedTuple

CONNECT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
"""Seconds; `timeouts.connect` and `greeting` are 10 and 20 by default."""
REPLY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds; a store that indexes or filters may need minutes, and `timeouts.final_reply` is 500 by default."""
LATENESS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """How many observations fell below each bound.

    Attributes:
        bounds: rising.
        counts: one for each of them, and one for what is above.
        total: of all that was observed.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def __repr__(self) -> str:
        return f"<Histogram {sum(self.counts)} observations, {self.total:g} s>"

    def observe(self, seconds: float) -> None:
        """One more; a bound counts what is equal to it, as Prometheus has it."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


# --- what a counter says of itself -----------------------------------------------------------------------------------


class Family(NamedTuple):
    """What one counter, or several that belong together, are for those who watch.

    Attributes:
        name: in Prometheus, without the `lmtp_proxy_` before it and the `_total` after it.
        text: one sentence for people.
        key: in the figures; there, several that belong together stand below it. Empty: by their own names.
        label: of Prometheus, where several belong together; its value is a counter's name.
        bounds: of a histogram.
        greatest: over several processes the greatest counts, not the sum. It may go back when a process has ended.
    """

    name: str
    text: str
    key: str = ""
    label: str = ""
    bounds: tuple[float, ...] = ()
    greatest: bool = False


class Counter(NamedTuple):
    """One counter, as it says of itself.

    Attributes:
        name: of its field.
        family: what it is outside.
        in_status: it is also a number of `/status` and `/backends`.
    """

    name: str
    family: Family
    in_status: bool

    def value_in(self, tree: dict[str, Any]) -> Any:
        """Its value in what `tree_of` made."""
        return tree[self.family.key][self.name] if self._is_below else tree[self.family.key or self.name]

    def put_into(self, tree: dict[str, Any], value: Any) -> None:
        """See `tree_of`."""
        if self._is_below:
            tree.setdefault(self.family.key, {})[self.name] = value
        else:
            tree[self.family.key or self.name] = value

    @property
    def _is_below(self) -> bool:
        return bool(self.family.key and self.family.label)


def counter(family: Family, *, in_status: bool = False, start: float = 0) -> Any:
    """A field of a dataclass that counts, from `start` on, or is a histogram, if the family has bounds."""
    metadata = {"family": family, "in_status": in_status}
    if family.bounds:
        return field(default_factory=lambda: Histogram(family.bounds), metadata=metadata)
    return field(default=start, metadata=metadata)


@cache
def counters_of(kind: Any) -> tuple[Counter, ...]:
    """Those of a dataclass, in the order of its fields. A field that says nothing of itself is shown to nobody."""
    found = (each for each in fields(kind) if each.metadata)
    return tuple(Counter(each.name, each.metadata["family"], each.metadata["in_status"]) for each in found)


def families_of(kind: Any) -> list[tuple[Family, list[Counter]]]:
    """Each family of a dataclass once, with its counters."""
    found: dict[str, tuple[Family, list[Counter]]] = {}
    for each in counters_of(kind):
        found.setdefault(each.family.name, (each.family, []))[1].append(each)
    return [*found.values()]


def tree_of(counts: Any, *, greatest: bool = False) -> dict[str, Any]:
    """The values of counters as JSON has them.

    Args:
        greatest: those of which the greatest counts, over several processes; else those that are added up.
    """
    tree: dict[str, Any] = {}
    for each in counters_of(counts.__class__):
        if each.family.greatest == greatest:
            value = getattr(counts, each.name)
            is_histogram = isinstance(value, Histogram)
            each.put_into(tree, {"counts": list(value.counts), "sum": value.total} if is_histogram else value)
    return tree


# --- the process -----------------------------------------------------------------------------------------------------

_TRANSACTIONS = Family(
    "transactions",
    "Transactions: answered after their final dot, refused as a whole (size, ambiguous data), declined (each recipient "
    "was refused at RCPT) or aborted before it.",
    key="transactions",
    label="result",
)
_REFUSED = Family(
    "refused_recipients",
    "Recipients that no backend was asked for: parked on reject or hold, unknown, or no answer from the table.",
    key="refused",
    label="reason",
)


_TLS_FAILED = Family(
    "client_tls_failures",
    "Clients without TLS: a silent, closed or broken handshake, a certificate that is not valid, is missing or has a"
    " subject that is not allowed, or more than STARTTLS in plain text.",
    key="client_tls_failures",
    label="reason",
)


@dataclass(slots=True)
class Tallies:
    """Of one process, since its start, beside what each pool counts for its backend. Each family says what it counts.

    Attributes:
        ended: of the sessions that were accepted.
    """

    accepted: int = counter(Family("sessions_accepted", "Clients that were accepted.", key="sessions"))
    ended: int = 0
    in_tls: int = counter(
        Family("sessions_tls", "Of the clients that were accepted, those that spoke TLS.", key="sessions_tls")
    )
    silent: int = counter(_TLS_FAILED)
    closed: int = counter(_TLS_FAILED)
    broken: int = counter(_TLS_FAILED)
    certificate: int = counter(_TLS_FAILED)
    no_certificate: int = counter(_TLS_FAILED)
    subject: int = counter(_TLS_FAILED)
    injected: int = counter(_TLS_FAILED)
    answered: int = counter(_TRANSACTIONS)
    refused: int = counter(_TRANSACTIONS)
    declined: int = counter(_TRANSACTIONS)
    aborted: int = counter(_TRANSACTIONS)
    octets: int = counter(Family("received_message_bytes", "Octets of messages up to their final dot."))
    parked: int = counter(_REFUSED)
    unknown: int = counter(_REFUSED)
    lookup: int = counter(_REFUSED)
    lost_log_lines: int = counter(
        Family("log_lines_lost", "Lines of the log that are lost: syslog, or standard error, took none for too long.")
    )
    lateness: Histogram = counter(
        Family(
            "event_loop_lateness_seconds",
            "How late the event loop was, looked at ten times a second while there is mail.",
            bounds=LATENESS_BOUNDS,
        )
    )
    longest: float = counter(
        Family(
            "event_loop_longest_stall_seconds",
            "The longest that the event loop was seen to be late.",
            greatest=True,
        ),
        start=0.0,
    )

    def log_lines_lost(self, number: int) -> None:
        """So many more."""
        self.lost_log_lines += number

    def late(self, seconds: float) -> None:
        """The event loop did something so much later than it should have."""
        self.lateness.observe(seconds)
        if seconds > self.longest:
            self.longest = seconds


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float | None:
    """The bound below which that part of the observations lies, evenly spread within each step; None if there are none.

    What lies above all bounds counts as the last of them.
    """
    wanted = part * sum(counts)
    if not wanted:
        return None
    below = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count >= wanted:
            return below + (bound - below) * wanted / count
        wanted -= count
        below = bound
    return bounds[-1]
