# SPDX-License-Identifier: GPL-3.0-or-later
"""From a recipient to its route. No gevent, no connections.

In the order of their imports:

    keys          the form in which a mailbox is looked up
    table         where the backend of a key is written down
    static_table  the `users:` section of the configuration
    routing       recipient -> Route
"""
