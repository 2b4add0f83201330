# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `lmtp-proxy`: arguments, start order, exit status.

All that an operator can get wrong is done while somebody looks at the terminal: read the configuration, lock the pid
file, bind the socket. Only then the process becomes a daemon, and only after that gevent is imported, because a gevent
hub does not survive the fork.
"""

import argparse
import os
import pwd
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from lmtp_proxy import __version__
from lmtp_proxy.config.loading import are_large, load
from lmtp_proxy.config.values import Config, ConfigError
from lmtp_proxy.start.late_modules import late_modules
from lmtp_proxy.start.pid_file import PidFile
from lmtp_proxy.start.ready import notify_ready
from lmtp_proxy.start.signals import RELOAD_SIGNALS, STOP_SIGNALS
from lmtp_proxy.start.sockets import Listener, listen, listen_for_control, listen_for_metrics
from lmtp_proxy.start.start import Start
from lmtp_proxy.streams import ProgramParser, say, say_lost, settle

DEFAULT_CONFIG = "/etc/lmtp-proxy.yml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0, 1 for an error (one line each on stderr), 2 for wrong arguments, 74 where what it prints could not be written,
    130 when it was interrupted before it served.
    """
    try:
        return _main(arguments)
    finally:
        settle(sys.stdout, sys.stderr)


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        config = load(options.config)
        if options.check:
            if os.geteuid() == 0:  # who else checks need not be who starts
                _check_run_as(config)
            if config.run_as is None or os.geteuid() in (0, _account(config.run_as).pw_uid):  # else nobody can tell
                _check_files(config)
            lost = say(sys.stdout, [*(f"note: {note}" for note in config.notes), _summary(config)])
            return 0 if lost is None else say_lost("lmtp-proxy", lost)
        return _run(config, daemonise=options.daemonize)
    except ConfigError as error:
        say(sys.stderr, error.errors)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser(
        prog="lmtp-proxy",
        description="LMTP delivery proxy: routes each recipient to the backend that holds its mailbox.",
        epilog="SIGUSR1 or SIGHUP reloads the configuration, SIGTERM or SIGINT stops after the transactions in hand.",
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
    parser.add_argument("--check", action="store_true", help="validate the configuration and exit")
    parser.add_argument("--version", action="version", version=f"lmtp-proxy {__version__}")
    parser.formatter_class = argparse.HelpFormatter
    return parser


def _summary(config: Config) -> str:
    fallback = f", fallback {config.fallback_backend}" if config.fallback_backend else ""
    metrics = f", metrics on http://{config.metrics}/" if config.metrics else ""
    what = f"{len(config.users)} users, {len(config.backends)} backends{fallback}, on {config.socket}{metrics}"
    return f"{config.path}: OK: {what}"


def _run(config: Config, *, daemonise: bool) -> int:
    # From here on a reload asked for too early must not end the process, which is what SIGUSR1 does by default.
    received: list[int] = []
    for number in (*RELOAD_SIGNALS, *STOP_SIGNALS):
        signal.signal(number, lambda number, _frame: received.append(number))
    _check_run_as(config)
    _check_files(config)
    pid_file = PidFile(config.pid, config.path) if daemonise else None
    if pid_file:
        pid_file.acquire()
    control = listen_for_control(config)
    try:
        metrics = listen_for_metrics(config)
        listener = listen(config)
    except ConfigError:
        if control:
            control.remove()
        raise
    listeners = [each for each in (listener, control, metrics) if each]
    if listener.notice:
        say(sys.stderr, [listener.notice])

    started = _become_daemon(listeners, pid_file, config.users.handles) if pid_file else None
    if pid_file:
        pid_file.write()

    start = Start(
        config=config,
        users=len(config.users),
        mail=listener,
        control=control,
        metrics=metrics,
        daemonised=daemonise,
        received=received,
        ready=lambda: _tell(started),
    )
    # Not before: it makes the gevent hub. And before the privileges go, which may include that to read its files.
    serve: Callable[[Start], int]
    if config.workers == 1:
        from lmtp_proxy.service import serve
    else:
        from lmtp_proxy.workers.supervisor import serve

        config.users.close()  # each worker has its own

    _drop_privileges(config)
    status = serve(start)
    if pid_file:
        pid_file.remove()
    return status


def _become_daemon(listeners: list[Listener], pid_file: PidFile, tables: tuple[int, ...]) -> int:
    """Go on in the background; returns a descriptor to `_tell` when clients are served.

    The command itself ends only then, so that an init script finds the pid file written and the exit status true.
    """
    # Here, because Debian's makes a set of all numbers that a descriptor may have: 2.8 MB for 20,000 of them.
    import daemon

    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        ready = os.read(reader, 1)
        if not ready:
            say(sys.stderr, ["lmtp-proxy: the daemon ended before it was ready; the syslog may say why"])
        os._exit(0 if ready else 1)
    os.close(reader)
    daemon.DaemonContext(
        detach_process=True,
        umask=0o077,
        signal_map={},  # ours are installed already
        files_preserve=[*(listener.socket for listener in listeners), pid_file, *tables, writer],
    ).open()
    return writer


def _tell(started: int | None) -> None:
    if trouble := notify_ready():
        say(sys.stderr, [trouble])
    if started is not None:
        os.write(started, b"1")
        os.close(started)


def _check_run_as(config: Config) -> None:
    if config.run_as is None or os.geteuid() == _account(config.run_as).pw_uid:
        return
    if os.geteuid() == 0:
        files = [file.path for file in config.files]
        directories = [path for path in config.users_file or () if os.path.isdir(path)]
        for path, mode in [*((path, os.R_OK | os.X_OK) for path in directories), *((path, os.R_OK) for path in files)]:
            if not _may(_account(config.run_as), path, mode):
                what = f"{config.run_as} may not read {path}, so no reload would work; see chgrp and chmod"
                raise ConfigError((f"{config.path}: config.run_as: {what}",))
        if config.workers > 1:
            reason = "no worker would start; see chmod, or workers: 1"
        elif are_large(files):  # a process of its own loads it
            reason = "no reload of so large a file would work; see chmod"
        else:
            return
        for path in (__file__, sys.executable):
            if not _may(_account(config.run_as), path, os.R_OK):
                what = f"{config.run_as} may not read {path}, so {reason}"
                raise ConfigError((f"{config.path}: config.run_as: {what}",))
        return
    raise ConfigError(
        (f"{config.path}: config.run_as: only root can become {config.run_as}; start as root or as that user",)
    )


def _check_files(config: Config) -> None:
    """That the process which serves can write its files, and has what it needs for them. Raises ConfigError."""
    found = (_uncertain_log_error(config), _receipts_error(config), _metrics_error(config))
    errors = [f"{config.path}: {error}" for error in found if error]
    if errors:
        raise ConfigError(tuple(errors))


def _uncertain_log_error(config: Config) -> str | None:
    path = config.uncertain_log
    if path is None:
        return None
    # What is not there yet is made in its directory.
    target, mode = (path, os.W_OK) if os.path.lexists(path) else (os.path.dirname(path), os.W_OK | os.X_OK)
    allowed, who = _may_serve(config, target, mode)
    if allowed and not os.path.isdir(path):
        return None
    return f"config.uncertain_log: {who} cannot write {path}; see chown and chmod"


def _receipts_error(config: Config) -> str | None:
    path = config.receipts
    if path is None:
        return None
    try:
        import lmtp_proxy.receipts.file  # noqa: F401  (and now, because `run_as` may not be able to read it)
    except ImportError as error:
        return f"config.receipts: this Python cannot use SQLite: {error}"
    directory = os.path.dirname(path)
    allowed, who = _may_serve(config, directory, os.W_OK | os.X_OK)
    if not allowed:  # SQLite makes files beside the one
        return f"config.receipts: {who} cannot write in {directory}; see mkdir, chown and chmod"
    if os.path.lexists(path) and (not _may_serve(config, path, os.R_OK | os.W_OK)[0] or os.path.isdir(path)):
        return f"config.receipts: {who} cannot write {path}; see chown and chmod"
    return None


def _metrics_error(config: Config) -> str | None:
    """It is imported by the first scrape."""
    if config.metrics is None or find_spec("prometheus_client") is not None:
        return None
    return "config.metrics: this Python has no prometheus_client: install it (Debian: python3-prometheus-client)"


def _may_serve(config: Config, path: str, mode: int) -> tuple[bool, str]:
    """Whether the user who is to serve may; and who that is."""
    if config.run_as is not None and os.geteuid() == 0:
        return _may(_account(config.run_as), path, mode), config.run_as
    return os.access(path, mode, effective_ids=True), "this user"


def _may(account: pwd.struct_passwd, path: str, mode: int) -> bool:
    """Whether the user may, tried as that user; we are root."""
    groups, group = os.getgroups(), os.getegid()
    try:
        os.setgroups(os.getgrouplist(account.pw_name, account.pw_gid))
        os.setegid(account.pw_gid)
        os.seteuid(account.pw_uid)
        return os.access(path, mode, effective_ids=True)
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _drop_privileges(config: Config) -> None:
    if config.run_as is None or os.geteuid() != 0:
        return
    for module in late_modules(config):
        import_module(module)  # that user may not be able to read it
    account = _account(config.run_as)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def _account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return pwd.getpwuid(int(name))  # the configuration was checked: it is one of the two
