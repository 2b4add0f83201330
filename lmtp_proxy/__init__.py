# SPDX-License-Identifier: GPL-3.0-or-later
"""lmtp-proxy: an LMTP delivery proxy (RFC 2033) that routes each recipient to the store that holds it.

Folders by subject, in one order: a module imports only what stands above it here, and inside its folder only what
stands above it in the map that opens the folder's `__init__.py`. ``tests/unit/test_rings.py`` reads and proves it.

    text.py       how foreign text and times are written
    streams.py    standard streams of a command that may be closed, or full
    counts.py     what a process counts: integers and histograms
    wire/         LMTP as octets, both sides of it; no I/O, no time, no log
    routing/      from a recipient to its route; no gevent
    loop/         gevent without LMTP
    table/        users in a database; no gevent
    config/       from the file to frozen values, and back; no gevent
    log.py        the log: where it goes, and lines in batches
    start/        what happens before gevent is there
    backends/     conversations with the stores
    generations/  one configuration as it serves, and the next one
    receipts/     what each mailbox got, and what waits for it
    delivery/     one message to its stores
    clients/      who hands us mail
    figures/      what is counted, for those who watch
    control/      what an operator can ask one process for
    web/          the status page
    service.py    one process: patching, building and joining the above, signals
    workers/      several processes as one proxy
    ctl/          the command lmtp-proxyctl; no gevent
    check.py      what a start would trip over beyond what the configuration file says
    trial/        lmtp-proxy --try: the proxy in front of two stores that are there
    cli.py        the command lmtp-proxy: argv, start order, exit codes
    demo/         a program of its own, which uses the rest
"""

import os

__version__ = "0.1.0"

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
"""The directory that the package is in: what a Python that is to find it has in its path."""
