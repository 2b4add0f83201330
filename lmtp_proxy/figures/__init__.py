# SPDX-License-Identifier: GPL-3.0-or-later
"""What is counted, for those who watch.

In the order of their imports:

    figures     what the processes have counted, as plain values
    samples     the counters of the last minutes
    prometheus  the figures in the words of Prometheus
    loop_watch  notices when the event loop is kept from its work
"""
