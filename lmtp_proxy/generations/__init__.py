# SPDX-License-Identifier: GPL-3.0-or-later
"""One configuration as it serves, and how the next one takes its place.

In the order of their imports:

    share        one process's part of a limit that is for all
    installed    which version of the package is on the disk
    destination  where the mail of one recipient goes in one generation
    generation   one configuration as it serves: number, config, routing, pools
    moved        who was moved by a look at a table, and when
    reloads      one reload at a time, for however many ask
    following    asks for a look at a table when somebody has changed it
    manager      the greenlet that reloads on SIGUSR1
"""
