# SPDX-License-Identifier: GPL-3.0-or-later
"""Several processes as one proxy.

In the order of their imports:

    settings    what a worker is told when it is started
    channel     how the supervisor reaches the control application of a worker
    service     one worker of several
    process     a worker as its supervisor sees it
    team        all workers: started, restarted, kept to one configuration
    figures     the figures of all workers
    merged      what the operator can ask a proxy of several workers
    supervisor  the process that serves no mail, but has workers do so
    worker      the command that a supervisor runs as a worker
"""
