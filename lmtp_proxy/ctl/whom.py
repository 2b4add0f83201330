# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a verb is for, by its arguments: named on the command line, or in a list. The same on one host and on several.

A wrong argument ends the process, as argparse has it. It asks nobody.
"""

import argparse
from collections.abc import Sequence

from lmtp_proxy.ctl import files


def to_be_drained(options: argparse.Namespace) -> list[str]:
    """Of `drain`: keys; none for all users. Raises Failed and ControlError."""
    if bool(options.users) + options.all + (options.file is not None) != 1:
        options.parser.error("name the users, or their list by --file, or --all")
    return _keys(options, options.users, "nothing was waited for")


def to_be_looked_up(options: argparse.Namespace) -> str:
    """Of `lookup`: an address as it was given. Raises ControlError."""
    if (options.address is None) == (options.file is None):
        options.parser.error("name one address, here or by --file")
    address: str = options.address if options.file is None else files.address_in(options.file)
    return address


def to_be_moved(options: argparse.Namespace, users: Sequence[str]) -> list[str]:
    """Of `move`: keys. users: as they are named before the backend. Raises Failed and ControlError."""
    return _keys(options, users, "nothing was changed")


def _keys(options: argparse.Namespace, users: Sequence[str], said: str) -> list[str]:
    from lmtp_proxy.ctl.names import given, keys_of  # which a lookup does without

    return keys_of(given(users) if options.file is None else files.numbered_users(options.file), said)
