# SPDX-License-Identifier: GPL-3.0-or-later
"""gevent without LMTP: sockets, clients that come, work for a thread.

In the order of their imports:

    certificate  what a certificate says; no gevent
    tls_context  what TLS is spoken with; no gevent
    stream       a connected socket on gevent's loop, and waiting for it
    tls          the same in TLS
    resolve      the addresses of a name, in a thread of its own
    connect      a connection to the first of several addresses
    acceptor     accepts clients up to a limit, each in a greenlet of its own
    process      what a process does first on its loop: its sockets become gevent's, files may be opened
    late         what is loaded or made only when there is work: an import, a thread, a server
"""
