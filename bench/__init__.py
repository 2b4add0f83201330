# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench: how much lmtp-proxy costs, beside what else one could put in its place. `make bench` runs it.

It knows the proxy by its command, its configuration file, its sockets and /proc alone, as it knows its peers. docs/
performance.md says what is measured and how. A module imports only from those above it:

    address.h load.c sink.c probe.c   the load, the backend, the prober: built into bench/build
    processes   a private directory and the processes started in it, which end with it
    usage       CPU time and memory of processes, by /proc
    tools       builds the C programs, runs them, reads what they say
    peers       HAProxy, Dovecot and nothing at all: how each is configured and started
    proxy       lmtp-proxy: configured and started as by an operator, and its control socket
    floor       the least that a proxy in Python costs (it uses the package's stream)
    workloads   A to E, and one run of one
    rounds      programs in turn, medians
    stall       how long an event loop was away, from what the prober saw
    tables      F: tables of many users: start, reload, memory
    offline     G: what a migration adds to the time for which a user is offline
    results     one run of the bench as JSON
    targets     the fifteen targets
    comparison  this checkout against another one that ran beside it
    machine     versions of everything, and what the machine is
    report      tables, as text and as Markdown
    plot        a bar chart, as SVG
    profiling   where the time goes
    puppets     sockets that are none, with peers that answer at once
    simulate    our own code alone, between these (it does import the package)
"""
