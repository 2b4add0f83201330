# SPDX-License-Identifier: GPL-3.0-or-later
"""Who hands us mail.

In the order of their imports:

    watch     notices a client that goes away while a backend is waited for
    pace      how fast a message comes
    refusals  which of our own refusals are in the log
    access    which hosts may do what
    proxied   for whom a proxy in front connects
    tls       TLS with a client, and whether its certificate may deliver
    session   the loop between client socket, protocol and transaction
    server    listening sockets, client limit, drain on stop
"""
