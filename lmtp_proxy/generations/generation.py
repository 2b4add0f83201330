# SPDX-License-Identifier: GPL-3.0-or-later
"""One configuration as it serves: its number, values, routing and pools. Immutable; a reload makes the next one.

It does not load files and does not decide when to change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import gevent

from lmtp_proxy.backends.pool import BackendPool
from lmtp_proxy.config.values import RESERVED, Config
from lmtp_proxy.generations.destination import Destinations
from lmtp_proxy.generations.share import WHOLE, Share
from lmtp_proxy.routing.routing import Routing


@dataclass(frozen=True, slots=True)
class Generation:
    """One configuration as it serves.

    Attributes:
        number: counts from 1.
        config: what was loaded.
        routing: its table.
        pools: one per backend name, for every name that `routing` can give.
        share: this process's part of what each backend allows.
        destinations: of each recipient; remembered, where that changes nothing.
    """

    number: int
    config: Config
    routing: Routing
    pools: Mapping[str, BackendPool]
    share: Share = WHOLE
    destinations: Destinations = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "destinations", Destinations(self.number, self.routing, self.pools))

    def replaced(self) -> None:
        """Another one is in force: who waits for a place at a mailbox is to look where that is now."""
        for pool in self.pools.values():
            pool.mailboxes.routes_changed()


CurrentGeneration: TypeAlias = Callable[[], Generation]
"""Gives the generation that is in force at the moment of the call."""


def first_generation(config: Config, share: Share = WHOLE) -> Generation:
    """The generation that a start begins with."""
    return _generation(1, config, {}, share)


def next_generation(config: Config, previous: Generation) -> Generation:
    """The generation after `previous`. A backend that did not change keeps its pool, so its limit goes on to hold."""
    return _generation(previous.number + 1, config, previous.pools, previous.share)


def retire(previous: Generation, current: Generation | None = None) -> "list[gevent.Greenlet[..., None]]":
    """The pools of `previous` that `current` has not taken over keep no connection any more.

    Returns the greenlets that take leave of the backends.
    """
    taken_over = set(current.pools.values()) if current else set()
    return [leave for pool in set(previous.pools.values()) - taken_over for leave in pool.retire()]


def _generation(number: int, config: Config, pools: Mapping[str, BackendPool], share: Share) -> Generation:
    def pool(name: str) -> BackendPool:
        backend = config.backends[name]
        backend = replace(
            backend,
            max_connections=share.part(backend.max_connections),
            max_per_user=share.part(backend.max_per_user),
        )
        old = pools.get(name)
        if old and old.backend == backend and old.hostname == config.hostname:
            made = old
        else:
            mailboxes = old.mailboxes if old and old.backend.address == backend.address else None
            made = BackendPool(backend, config.hostname, old.counts if old else None, mailboxes)
        made.mailboxes.configure(backend.max_per_user, whole=config.backends[name].max_per_user)
        return made

    config.users.open()
    table = config.users if config.served is None else config.served.view(config.backends.keys() | RESERVED)
    routing = Routing(table, config.key_rules, config.fallback_backend)
    return Generation(number, config, routing, {name: pool(name) for name in config.backends}, share)
