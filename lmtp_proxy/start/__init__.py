# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens before gevent is there: sockets, pid file, and saying that all is ready.

In the order of their imports:

    late_modules  what a process that serves imports only when there is work for it
    signals       the signals that a proxy hears
    sockets       listening sockets with their owner and mode
    leftovers     removes the sockets that a proxy without rights has left
    pid_file      the pid file and its lock
    table_owner   the lock on a table in a file, of which one proxy serves
    background    becomes a daemon
    ready         says that clients are served, to systemd and in the log
    start         all of that as one value, for the process that is to serve
"""
