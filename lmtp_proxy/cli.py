# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `lmtp-proxy`: arguments, start order, exit status.

All that an operator can get wrong is done while somebody looks at the terminal: read the configuration, lock the pid
file, bind the socket. Only then the process becomes a daemon, and only after that gevent is imported, because a gevent
hub does not survive the fork.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module

from lmtp_proxy import __version__
from lmtp_proxy.check import account, check, check_files, check_run_as, notes_on
from lmtp_proxy.config.loading import load
from lmtp_proxy.config.values import Config, ConfigError, named
from lmtp_proxy.log import log_trouble
from lmtp_proxy.start.background import go_to_background
from lmtp_proxy.start.late_modules import late_modules
from lmtp_proxy.start.pid_file import PidFile
from lmtp_proxy.start.ready import Notifier
from lmtp_proxy.start.signals import RELOAD_SIGNALS, STOP_SIGNALS
from lmtp_proxy.start.sockets import listen, listen_for_control, listen_for_metrics
from lmtp_proxy.start.start import Start
from lmtp_proxy.streams import ProgramParser, put_right, say, say_lost, settle

DEFAULT_CONFIG = "/etc/lmtp-proxy.yml"
_MORE = """SIGUSR1 or SIGHUP reloads the configuration, SIGTERM or SIGINT stops after the
transactions in hand.

exit status:
  0    it has served and was ended, or --check found nothing wrong
  1    an error, one line each on the standard error
  2    wrong arguments
  74   what it prints could not be written: a full disk, perhaps
  130  interrupted before it served

example: lmtp-proxy --check -c /etc/lmtp-proxy.yml"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0, 1 for an error (one line each on stderr), 2 for wrong arguments, 74 where what it prints could not be written,
    130 when it was interrupted before it served.
    """
    put_right()
    try:
        return _main(arguments)
    finally:
        settle(sys.stdout, sys.stderr)


def _main(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.try_out:
        return _try(parser, options)
    if options.old or options.new or options.listen or options.user:
        parser.error("--old, --new, --listen and --user are for --try")
    try:
        config = load(options.config, table=not options.check)
        if options.check:
            notes = notes_on(config) if options.check == "file" else check(config, stores=options.check == "all")
            lost = say(sys.stdout, [*(f"note: {note}" for note in notes), _summary(config)])
            return 0 if lost is None else say_lost("lmtp-proxy", lost)
        return _run(config, daemonise=options.daemonize)
    except ConfigError as error:
        say(sys.stderr, error.errors)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _try(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from lmtp_proxy.trial.trial import Wishes, try_out

    if options.check or options.daemonize:
        parser.error("--try goes without --check and -D")
    path = None if options.config == DEFAULT_CONFIG else options.config
    program = sys.orig_argv[
        : len(sys.orig_argv) - len(sys.argv) + 1
    ]  # the interpreter with its options, and the script
    return try_out(Wishes(path, options.old, options.new, options.listen, options.user), program)


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser(
        prog="lmtp-proxy",
        description="LMTP delivery proxy: routes each recipient to the store that holds its mailbox.",
        epilog=_MORE,
        allow_abbrev=False,
        # While options are added. Without a width it asks shutil, which brings compression of three kinds: 0.6 MB.
        formatter_class=partial(argparse.HelpFormatter, width=78),
    )
    parser.add_argument(
        "-c",
        "--config",
        nargs="?",
        const=DEFAULT_CONFIG,
        default=DEFAULT_CONFIG,
        help="configuration file location (default: %(default)s)",
    )
    parser.add_argument("-D", "--daemonize", action="store_true", help="run in the background")
    parser.add_argument(
        "--check",
        nargs="?",
        const="all",
        choices=("all", "start", "file"),
        help="validate the configuration and what mail needs, and exit; start: and what a start needs; "
        "file: it alone, as a reload reads it",
    )
    trial = parser.add_argument_group("to try it out in front of two stores, with everybody on the old one")
    trial.add_argument(
        "--try", dest="try_out", action="store_true", help="write a configuration, ask both stores, serve until Ctrl-C"
    )
    trial.add_argument("--old", metavar="STORE", help="the store that everybody is on: SOCKET or HOST:PORT")
    trial.add_argument("--new", metavar="STORE", help="the new store")
    trial.add_argument("--listen", metavar="HOST:PORT", help="where mail comes in (default: 127.0.0.1:2425)")
    trial.add_argument("--user", help="for whom the stores are asked, too")
    parser.add_argument("--version", action="version", version=f"lmtp-proxy {__version__}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def _summary(config: Config) -> str:
    fallback = f", fallback {config.fallback_backend}" if config.fallback_backend else ""
    metrics = f", metrics on http://{config.metrics}/" if config.metrics else ""
    users = f"{config.how_many} users" if config.table is None else f"users in {config.table.sqlite}"
    what = f"{users}, {len(config.backends)} backends{fallback}, on {named(config.socket)}{metrics}"
    return f"{config.path}: OK: {what}"


def _run(config: Config, *, daemonise: bool) -> int:
    # From here on a reload asked for too early must not end the process, which is what SIGUSR1 does by default.
    received: list[int] = []
    for number in (*RELOAD_SIGNALS, *STOP_SIGNALS):
        signal.signal(number, lambda number, _frame: received.append(number))
    check_run_as(config)
    check_files(config)
    notifier, users = Notifier.taken(), config.how_many
    pid_file = PidFile(config.pid, config.path) if daemonise else None
    with ExitStack() as at_end, ExitStack() as unless_ready:
        if pid_file:
            pid_file.acquire()
            at_end.callback(pid_file.remove)
        owner = None
        if config.table is not None:
            from lmtp_proxy.start.table_owner import TableOwner  # as in `late_modules`: only who has a table

            owner = TableOwner(config)
            owner.acquire()
        control = listen_for_control(config)
        if control:
            unless_ready.callback(control.remove)
        metrics = listen_for_metrics(config)
        mail = listen(config)
        for each in mail:
            unless_ready.callback(each.remove)
        listeners = [each for each in (*mail, control, metrics) if each]
        if notices := [each.notice for each in mail if each.notice]:
            say(sys.stderr, notices)
        if trouble := log_trouble(config.log, daemonised=daemonise):
            say(sys.stderr, [f"{config.path}: config.log.syslog: {trouble}"])

        started = None
        if pid_file:
            started = go_to_background(
                [*(each.socket for each in listeners), pid_file, *([owner] if owner else []), *config.users.handles]
            )
            pid_file.write()

        def ready() -> None:
            unless_ready.pop_all()  # from now on they go in their own order, or tell the next start of a crash
            _tell(started, notifier.ready(config, users))

        start = Start(
            config=config,
            users=users,
            mail=mail,
            control=control,
            metrics=metrics,
            daemonised=daemonise,
            received=received,
            ready=ready,
            notifier=notifier,
        )
        # Not before: it makes the gevent hub. And before the privileges go, which may include that to read its files.
        serve: Callable[[Start], int]
        if config.workers == 1:
            from lmtp_proxy.service import serve
        else:
            from lmtp_proxy.workers.supervisor import serve

            config.users.close()  # each worker has its own

        _drop_privileges(config)
        return serve(start)


def _tell(started: int | None, trouble: str | None) -> None:
    if trouble:
        say(sys.stderr, [trouble])
    if started is not None:
        os.write(started, b"1")
        os.close(started)


def _drop_privileges(config: Config) -> None:
    if config.run_as is None or os.geteuid() != 0:
        return
    for module in late_modules(config):
        import_module(module)  # that user may not be able to read it
    user = account(config.run_as)
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
