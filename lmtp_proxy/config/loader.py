# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that loads a configuration for another one, see loading: `python -m lmtp_proxy.config.loader ORDER`.

It reads and checks the file, puts the table of users into an open file that it was given, compares it with the table in
force, and writes everything else to its standard output. What is done with that it does not know.
"""

import json
import os
import pickle
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lmtp_proxy.config.difference import compare_users
from lmtp_proxy.config.loading import HEADER, MAGIC, LoadAnswer, LoadOrder
from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.values import Config, ConfigError, MaxRemoved
from lmtp_proxy.routing.keys import KeyRules
from lmtp_proxy.routing.static_table import StaticTable, changes


def main(arguments: Sequence[str]) -> None:
    """arguments: a LoadOrder as text. Does not return."""
    order = LoadOrder.read(arguments[0])
    with suppress(OSError):  # where a sandbox forbids it, as the package's systemd unit does
        if order.nice:
            os.nice(order.nice)
    with suppress(OSError):  # when memory gets short, this process rather than the one that serves
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    try:
        answer = _of_table(order) if order.alone is not None else _of_file(order)
    except ConfigError as error:
        answer = LoadAnswer(error.errors)
    octets = pickle.dumps(answer)
    with open(1, "wb", closefd=False) as out:
        out.write(HEADER.pack(MAGIC, len(octets)) + octets)
    os._exit(0)  # at once: to take a million objects apart one by one helps nobody


def _of_file(order: LoadOrder) -> LoadAnswer:
    """Raises ConfigError."""
    config = load_config(order.path, order.store)
    if config.table is not None and order.table:
        return _of_table(order, config)
    old = config.users if order.old is None else StaticTable.of_file(*order.old)
    users = compare_users(old, config.users)
    return LoadAnswer((), replace(config, users=StaticTable()), config.users.shape, users)


def _of_table(order: LoadOrder, config: Config | None = None) -> LoadAnswer:
    """Of a table in a database: that of `config`, else the one that the order names. Raises ConfigError."""
    from lmtp_proxy.table.base import TableError
    from lmtp_proxy.table.reading import TableInForce, find, merged, served

    if config is not None:
        assert config.table is not None
        path, rules, may_go = config.table.sqlite, config.key_rules, config.max_removed
    else:
        assert order.alone is not None
        path, rules, may_go = order.alone[0], KeyRules(*order.alone[1]), MaxRemoved(*order.alone[2])
    old = None if order.old is None else StaticTable.of_file(*order.old)
    if old is not None and order.overlay is not None:
        with open(order.overlay, "rb", closefd=False) as file:
            file.seek(0)
            old = old.overlaid(json.load(file))
    try:
        found = find(path, rules, TableInForce(old, may_go.of, start=old is None), accept=order.accept)
        base = served(found, path, rules).base
    except TableError as error:
        raise ConfigError((f"{order.path}: config.table: {error}",)) from error
    gone = found.gone
    new = base
    if old is not None:
        new = merged(base, found.changes, rules)
        gone = (*gone, *(each.key for each in changes(old, new) if each.after is None))
    users = compare_users(base if old is None else old, new)
    return LoadAnswer((), config and replace(config, users=StaticTable()), None, users, found, gone)


if __name__ == "__main__":
    main(sys.argv[1:])
