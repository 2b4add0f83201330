# SPDX-License-Identifier: GPL-3.0-or-later
"""gevent without LMTP: sockets, clients that come, work for a thread.

    late_import       whether this is a good moment for an import
    stream            a connected socket on gevent's loop, and waiting for it
    one_thread        a thread for work that waits, made when there is some
    patient_acceptor  waits where there is no file left for a client
    acceptor          accepts clients up to a limit, each in a greenlet of its own
    on_demand         a server until its first client comes
"""
