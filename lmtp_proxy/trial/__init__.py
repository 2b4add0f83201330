# SPDX-License-Identifier: GPL-3.0-or-later
"""`lmtp-proxy --try`; no gevent, as the proxy itself is a process of its own.

In the order of their imports:

    configuration  two stores as an operator names them -> the text of a file
    child_log      what the proxy says, kept until all else has been said
    trial          writes the file, starts the proxy, asks both stores, says how to use it
"""
