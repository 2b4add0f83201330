# SPDX-License-Identifier: GPL-3.0-or-later
"""Users in a database, which several proxies may share. No gevent: what waits for a database does so in a thread.

In the order of their imports:

    waiting   the gens that a node waits for, as the text in its row
    history   values: where a table stands in its history, what has changed, what a node says of itself
    schema    what is the same in every database: tables, and what a trigger has to do
    base      what a database must offer, and how it fails
    sqlite    the dialect of SQLite
    store     every statement that the proxy says to the database
    node      what one node has applied, and what it may say of it
    barrier   what a mover may conclude from the rows of all nodes
    served    the table as one process serves it
    copy      the table on this host's disk: a snapshot and a log
    reading   the table at a start: the copy, or the database
    replica   brings what a process serves up to date
"""
