# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipients without a backend: what they get, and where that is counted and noted."""

from collections.abc import Iterable

from lmtp_proxy.backends.failure import WITHOUT_ROUTE, Failure
from lmtp_proxy.delivery.client import Client
from lmtp_proxy.delivery.commit import ProcessParts
from lmtp_proxy.generations.destination import Destination
from lmtp_proxy.routing.routing import NoRoute
from lmtp_proxy.text import MAX_TEXT, shown


def failure_of(destination: Destination) -> Failure:
    """Why it has none."""
    refusal = destination.route.refusal
    return Failure.INTERNAL if refusal is None else WITHOUT_ROUTE[refusal]


def note_unrouted(
    parts: ProcessParts, client: Client, queue_id: str | None, destinations: Iterable[Destination]
) -> None:
    """Count these, and note them.

    At once: who moves one of them meanwhile and then asks what was deferred does not wait for what the others in the
    message wait for.
    """
    tallies = parts.tallies
    for destination in destinations:
        route, failure = destination.route, failure_of(destination)
        counter = failure.value.counter
        setattr(tallies, counter, getattr(tallies, counter) + 1)
        parts.receipts.refused(destination, failure.reply, queue_id, shown(route.reason, MAX_TEXT))
        if route.refusal is NoRoute.BARE:
            parts.bare.warn(client.name, client.peer, destination.path)
