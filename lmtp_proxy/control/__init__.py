# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator can ask one process for, over HTTP.

In the order of their imports:

    state        the parts of a process that can be asked about
    request      one request on the control socket, looked at strictly
    application  a WSGI application: a table of resources, answers in JSON
    json         the parts of the process as JSON values
    edits        which states of the configuration on the disk lmtp-proxyctl answers for
    migration    how far a run of `migrate` is, by its own word
    table        the table of resources, and what one process and several have in common
    server       HTTP on the control socket, proof against bad clients
    resources    what the operator can ask one process for
"""
