# SPDX-License-Identifier: GPL-3.0-or-later
"""A show of the proxy at work, for someone who sees it for the first time: `python -m lmtp_proxy.demo`.

A leaf: nothing in the proxy imports it, and it takes nothing from the proxy but its version. `store` is a small
LMTP server of its own that writes Maildir, so the demo needs no mail software on the machine.
"""
