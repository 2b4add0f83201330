# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that loads a configuration for another one, see loading: `python -m lmtp_proxy.config.loader ORDER`.

It reads and checks the file, puts the table of users into an open file that it was given, compares it with the table in
force, and writes everything else to its standard output. What is done with that it does not know.
"""

import os
import pickle
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmtp_proxy.config.difference import compare_users
from lmtp_proxy.config.loading import HEADER, MAGIC, LoadAnswer, LoadOrder
from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.values import Config, ConfigError
from lmtp_proxy.routing.static_table import StaticTable

if TYPE_CHECKING:
    from lmtp_proxy.table.reading import TableFound


def main(arguments: Sequence[str]) -> None:
    """arguments: a LoadOrder as text. Does not return."""
    order = LoadOrder.read(arguments[0])
    with suppress(OSError):  # where a sandbox forbids it, as the package's systemd unit does
        if order.nice:
            os.nice(order.nice)
    with suppress(OSError):  # when memory gets short, this process rather than the one that serves
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    try:
        config = load_config(order.path, order.store)
        table = None
        if config.table is not None and order.table:
            table, base = _table(config, accept=order.accept)
            config = replace(config, users=base)
        old = config.users if order.old is None else StaticTable.of_file(*order.old)
        users = compare_users(old, config.users)
        answer = LoadAnswer((), replace(config, users=StaticTable()), config.users.shape, users, table)
    except ConfigError as error:
        answer = LoadAnswer(error.errors)
    octets = pickle.dumps(answer)
    with open(1, "wb", closefd=False) as out:
        out.write(HEADER.pack(MAGIC, len(octets)) + octets)
    os._exit(0)  # at once: to take a million objects apart one by one helps nobody


def _table(config: Config, *, accept: bool) -> "tuple[TableFound, StaticTable]":
    """What is found of the users in the database, and the snapshot. Raises ConfigError."""
    from lmtp_proxy.table.base import TableError
    from lmtp_proxy.table.reading import find, served

    assert config.table is not None
    path, rules = config.table.sqlite, config.key_rules
    try:
        found = find(path, rules, accept=accept)
        return found, served(found, path, rules).base
    except TableError as error:
        raise ConfigError((f"{config.path}: config.table: {error}",)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
