# SPDX-License-Identifier: GPL-3.0-or-later
"""Many users moved with one command: plan, journal, state machine, hooks, runner.

Each module has one of these; `lmtp_proxy/__init__.py` lists them. Nothing here knows how the proxy serves mail: it is
asked over its control socket like anybody else's.
"""

DEFAULT_JOURNAL = "/var/lib/lmtp-proxy/migrate.db"
