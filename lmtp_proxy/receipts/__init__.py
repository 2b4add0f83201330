# SPDX-License-Identifier: GPL-3.0-or-later
"""What each mailbox got, and what waits for it.

In the order of their imports:

    batch     what is to be remembered of mailboxes, added up
    file      the file of receipts, which several processes write
    receipts  remembers what each mailbox got, and what waits for it
"""
