# SPDX-License-Identifier: GPL-3.0-or-later
"""LMTP as octets, both sides of it: what a client says, and what a backend answers. No I/O, no time, no log.

In the order of their imports:

    reply          a reply, and every sentence the proxy itself can say
    xtext          any octets as the value of a parameter
    xforward       what an MTA says of a message before MAIL
    envelope       path and ESMTP parameter syntax; Recipient, Envelope
    dot_stuffing   message data on the wire: end of data, the lone-dot rule, size
    reply_queue    replies in the order of their commands
    events         what the protocol tells the session
    command_lines  a client's octets as command lines
    protocol       LMTP server side, sans-I/O
    client         LMTP client side, sans-I/O
    proxy_header   the PROXY protocol: for whom a proxy connects
"""
