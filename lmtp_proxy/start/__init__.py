# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens before gevent is there: sockets, pid file, and saying that all is ready.

    start_log      what the log says at a start
    passed_socket  a listening socket that was passed to the process
    sockets        listening sockets with their owner and mode
    notify         tells systemd that clients are served
    pid_file       the pid file and its lock
"""
