# SPDX-License-Identifier: GPL-3.0-or-later
"""Which verb does what with --fleet: its arguments, as `command` has taken them apart, for the whole fleet."""

import argparse

from lmtp_proxy.config.types import backend_name
from lmtp_proxy.ctl.arguments import DEFAULT_CONFIG
from lmtp_proxy.ctl.drain import Outcome, Progress
from lmtp_proxy.ctl.fleet.file import Fleet, locked, the_fleet
from lmtp_proxy.ctl.fleet.interrupts import Interrupts
from lmtp_proxy.ctl.fleet.look import drain_all, lookup_on_all, status_of_all
from lmtp_proxy.ctl.fleet.move import FleetOrder, move_on_all
from lmtp_proxy.ctl.names import key_of_domain, keys_of
from lmtp_proxy.ctl.whom import to_be_drained, to_be_looked_up, to_be_moved

VERBS = ("move", "drain", "status", "lookup")


def on_all_hosts(options: argparse.Namespace, progress: Progress) -> Outcome:
    """Raises Failed; a wrong argument ends the process."""
    if options.name not in VERBS:
        options.parser.error(f"--fleet is for {', '.join(VERBS)}, not for {options.name}")
    if options.socket is not None or options.config != DEFAULT_CONFIG:
        options.parser.error("-c and --socket are for one host: write them into the commands of the fleet's file")
    with the_fleet(options.fleet) as fleet, Interrupts() as interrupts:
        if options.name == "move":
            order = _order(options)
            if order.dry_run:
                return move_on_all(fleet, order, progress, interrupts)
            return _move(fleet, order, progress, interrupts)
        if options.name == "drain":
            return drain_all(fleet, to_be_drained(options), options.timeout, progress, interrupts)
        if options.name == "lookup":
            [address] = keys_of([("", to_be_looked_up(options))], "nothing was asked")
            return lookup_on_all(fleet, address, progress, interrupts)
        return status_of_all(fleet, progress, interrupts)


def _move(fleet: Fleet, order: FleetOrder, progress: Progress, interrupts: Interrupts) -> Outcome:
    with locked(fleet, order.timeout, progress, interrupts):
        return move_on_all(fleet, order, progress, interrupts)


def _order(options: argparse.Namespace) -> FleetOrder:
    if options.only_from is not None or options.not_before or options.not_after:
        options.parser.error("with --fleet there is no --only-from: see --differ")
    *users, backend = options.names
    if (options.file is None) == (not users):
        options.parser.error("name the users and then the backend they move to, or the list by --file and the backend")
    try:
        backend_name(backend)
    except ValueError as error:
        options.parser.error(f"{backend}: {error}")
    return FleetOrder(
        users=to_be_moved(options, users),
        backend=backend,
        timeout=options.timeout,
        preflight=not options.no_preflight,
        domain=options.domain and key_of_domain(options.domain),
        also=options.also,
        differ=options.differ,
        dry_run=options.dry_run,
    )
