# SPDX-License-Identifier: GPL-3.0-or-later
"""Conversations with the stores.

In the order of their imports:

    counts         what is counted of one backend
    failure        what a backend's failure or odd reply means for its recipients
    step_deadline  until when a backend has time for what is asked of it
    session        one LMTP conversation with a backend
    tls_peer       what is known of one backend's TLS
    tls_session    the same conversation in TLS
    new_session    makes one of these two, and loads what it needs
    mailbox        how many recipients of one mailbox it has now
    mailboxes      how many of one mailbox it has at a time at most, and who waits
    per_recipient  whether a backend gives a final reply for each recipient
    greets         how many connections a backend greets at a time
    uses           what connections in use wait for, in words
    introductions  who a message comes from, for stores that are told
    pool           the connections to one backend: how many, which are kept
    test_message   the mail that shows where a store puts mail
    preflight      asks a backend whether it would take mail for some users
"""
