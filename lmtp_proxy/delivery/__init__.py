# SPDX-License-Identifier: GPL-3.0-or-later
"""One message to its stores.

In the order of their imports:

    uncertain      a delivery whose outcome is unknown, as a record
    bare_names     who sends recipients without a domain
    in_flight      deliveries under way; which of them a drain waits for
    uncertain_log  remembers uncertain deliveries, and appends them to a file
    state          what a delivery waits for
    asked_again    another session: when it is asked, and whom only that one refuses
    accounts       whom a delivery is for, and what each gets
    commit         the commit point of a delivery
    proof          whether a refusal is meant, or another's
    delivery       one backend's share of a transaction
    fan_out        several deliveries at once
    admission      places at the mailboxes of new recipients
    log            one log line per recipient
    client         what a transaction may do to its client
    summary        what an operator sees of a transaction
    unrouted       recipients without a backend
    parking        where recipients on `hold` wait
    transaction    the fan-out, and replies in RCPT order
"""
