# SPDX-License-Identifier: GPL-3.0-or-later
"""The command lmtp-proxyctl; no gevent at all.

In the order of their imports:

    client     HTTP over the control socket, from the outside
    output     what lmtp-proxyctl shows
    validity   when an order may be carried out, by the clock of the machine that does it
    arguments  the arguments that all verbs of lmtp-proxyctl have in common
    files      the files that lmtp-proxyctl reads
    drain      waits until nothing is in flight for some users
    names      what an operator calls a user -> the key that mail would hit
    whom       whom a verb is for, by its arguments
    in_table   users changed in the database of config.table
    taken_in   whether the proxy serves by such a change
    rehearsal  what a move would do
    move       preflight, edit, reload, drain
    probe      whether each store can be reached and would take mail
    mta        the MTA's own commands: one mail tried again, the whole queue listed
    requeue    has the MTA try deferred mail again at once
    receipts   the verbs of receipts
    table      the verb `table`: the database of config.table made, filled, written out, looked at
    fleet/     move, drain, status and lookup on several hosts
    migrate/   the verb `migrate`: many users moved with one command
    command    the command lmtp-proxyctl
"""
