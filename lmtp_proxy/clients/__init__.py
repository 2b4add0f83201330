# SPDX-License-Identifier: GPL-3.0-or-later
"""Who hands us mail.

    dot_clock      when the client can have sent its final dot
    watch          notices a client that goes away while a backend is waited for
    session_state  a session as an operator sees it
    session        the loop between client socket, protocol and transaction
    server         listening sockets, client limit, drain on stop
"""
