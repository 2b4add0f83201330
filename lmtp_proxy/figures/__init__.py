# SPDX-License-Identifier: GPL-3.0-or-later
"""What is counted, for those who watch.

    figures            what the processes have counted, as plain values
    samples            the counters of the last minutes
    exposition         the figures in the words of Prometheus
    exposition_thread  what is written for those who watch, in a thread
    loop_watch         notices when the event loop is kept from its work
"""
