# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments that all verbs of lmtp-proxyctl have in common, and their types.

A mistake in them is one line and exit status 64. It knows no verb.
"""

import argparse
import json
import re
import shlex
import sys
from typing import Any, NoReturn

from lmtp_proxy import streams
from lmtp_proxy.ctl import validity
from lmtp_proxy.ctl.output import did_you_mean
from lmtp_proxy.streams import say
from lmtp_proxy.text import safe

_NO_VERB = re.compile(r"argument VERB: invalid choice: '(.*)' \(choose from (.*)\)")  # argparse's words
DEFAULT_CONFIG = "/etc/lmtp-proxy.yml"
WRONG_ARGUMENTS = 64  # EX_USAGE; argparse's own 2 means something else here


class Parser(streams.ProgramParser):
    """names_anywhere: options may stand among the names, as in PLAN --jobs 8 USER."""

    names_anywhere = False
    _amid = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if not self.names_anywhere or self._amid:
            return super().parse_known_args(args, namespace)
        self._amid = True  # it is done in two parts, each of which comes here
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._amid = False

    def error(self, message: str) -> NoReturn:
        if (wrong := _NO_VERB.search(message)) is not None:
            verbs = re.findall(r"[a-z]+", wrong[2])
            message = f"there is no verb {wrong[1]}{did_you_mean(wrong[1], verbs)}"
        if "--json" in sys.argv:
            say(sys.stdout, [json.dumps({"error": message, "status": WRONG_ARGUMENTS})])
        say(sys.stderr, [f"{self.prog}: {safe(message)}; see {self.prog} --help"])
        sys.exit(WRONG_ARGUMENTS)


def text(argument: str) -> str:
    if not argument or not argument.isprintable():
        raise argparse.ArgumentTypeError("must be printable UTF-8 text, and not empty")
    return argument


def command(argument: str) -> tuple[str, ...]:
    """Words as a shell takes them apart, without one."""
    try:
        words = tuple(shlex.split(argument))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is no command: {error}") from None
    if not words or not argument.isprintable():
        raise argparse.ArgumentTypeError("must be a command and its options")
    return words


def seconds(argument: str) -> float:
    try:
        value = float(argument)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"must be seconds, 0 to 86400, not {argument!r}")
    return value


def moment(argument: str) -> validity.Moment:
    try:
        return validity.moment(argument)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def names(argument: str) -> frozenset[str]:
    return frozenset(text(argument).split(","))


def add_common_options(to: Any, *, unset: bool = False) -> None:
    """The options that may stand before the verb and after it.

    Args:
        to: a parser, or a group of one.
        unset: leave no default for those that are not given.
    """

    def default(value: object) -> object:
        return argparse.SUPPRESS if unset else value

    to.add_argument(
        *("-c", "--config"),
        type=text,
        metavar="CONFIG",
        default=default(DEFAULT_CONFIG),
        help=f"the proxy's configuration file (default: {DEFAULT_CONFIG})",
    )
    to.add_argument(
        "--socket",
        type=text,
        metavar="PATH",
        default=default(None),
        help="its control socket (default: config.control.socket of the configuration file)",
    )
    to.add_argument(
        "--fleet",
        type=text,
        metavar="FILE",
        default=default(None),
        help="move, drain, status or lookup on all hosts that FILE names",
    )
    to.add_argument("--json", action="store_true", default=default(False), help="print one JSON document")
