# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes what a proxy has left that had no right to remove it (`run_as`): for the init.d script, after a stop.

Not for operators: `python3 -m lmtp_proxy.start.leftovers CONFIG`. A socket on which somebody listens stays.
"""

import sys

from lmtp_proxy.config.loading import load
from lmtp_proxy.config.values import ConfigError
from lmtp_proxy.start.sockets import remove_dead_sockets


def main(path: str) -> int:
    """Returns the exit status: 1 if the configuration cannot be read."""
    try:
        remove_dead_sockets(load(path))
    except ConfigError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
