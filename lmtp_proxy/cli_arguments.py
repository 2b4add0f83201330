# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments of lmtp-proxy. What an init script gives is understood here; the rest, help and errors are argparse's.

That brings gettext and locale, and what it takes stays: 0.7 MB, which a process that serves has no use for.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lmtp_proxy import __version__

if TYPE_CHECKING:
    from argparse import ArgumentParser

DEFAULT_CONFIG = "/etc/lmtp-proxy.yml"


class Arguments(NamedTuple):
    """What the command is to do."""

    config: str = DEFAULT_CONFIG
    daemonize: bool = False
    check: bool = False


def parsed(arguments: Sequence[str] | None = None) -> Arguments:
    """Of `arguments`, or those of the command. Leaves (SystemExit) after --help, --version and what is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if (plain := plainly(arguments)) is not None:
        return plain
    return Arguments(**vars(parser().parse_args(arguments)))


def plainly(arguments: Sequence[str]) -> Arguments | None:
    """As argparse has it, or None where it is to be asked."""
    found = Arguments()
    rest = list(arguments)
    while rest:
        match rest:
            case ["-c" | "--config", str(path), *rest] if path and not path.startswith("-"):
                found = found._replace(config=path)
            case ["-D" | "--daemonize", *rest]:
                found = found._replace(daemonize=True)
            case ["--check", *rest]:
                found = found._replace(check=True)
            case _:
                return None
    return found


def parser() -> "ArgumentParser":
    """All that is known of the arguments."""
    from argparse import ArgumentParser

    known = ArgumentParser(
        prog="lmtp-proxy",
        description="LMTP delivery proxy: routes each recipient to the backend that holds its mailbox.",
        epilog="SIGUSR1 or SIGHUP reloads the configuration, SIGTERM or SIGINT stops after the transactions in hand.",
        allow_abbrev=False,
    )
    known.add_argument(
        "-c",
        "--config",
        nargs="?",
        const=DEFAULT_CONFIG,
        default=DEFAULT_CONFIG,
        help="configuration file location (default: %(default)s)",
    )
    known.add_argument("-D", "--daemonize", action="store_true", help="run in the background")
    known.add_argument("--check", action="store_true", help="validate the configuration and exit")
    known.add_argument("--version", action="version", version=f"lmtp-proxy {__version__}")
    return known
