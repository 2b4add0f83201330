# SPDX-License-Identifier: GPL-3.0-or-later
"""Verbs of lmtp-proxyctl on several hosts: it runs there by the site's own argument lists, and answers in JSON.

A host is not trusted to answer, to answer soon, or to answer what it was asked. In the order of their imports:

    interrupts  SIGINT and its like are counted, and wake whoever waits
    file        the file that names the hosts: who may write it, what it says, its lock
    errands     one command on each of several hosts, at once
    agree       whether hosts mean the same by a user and a backend
    report      what is shown of a move, host by host
    move        hold on all, drain all, flip all
    look        status, lookup and drain on all hosts
    command     which verb does what
"""
