# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `lmtp-proxyctl`: arguments, verbs, exit status.

A verb asks the running proxy over its control socket and returns an Outcome; what people and programs get to see of
it is decided here. Each command is a new process that somebody waits for, so imports that take their time stand where
they are needed.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lmtp_proxy import __version__
from lmtp_proxy.ctl import files as ctl_files
from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.arguments import Parser, add_common_options, command, moment, names, seconds, text
from lmtp_proxy.ctl.client import Answer, ControlClient, ControlError, Refusal, Unreachable
from lmtp_proxy.ctl.drain import OLD_STORE, REFUSED, UNPROVEN, Failed, Outcome, Progress, deliveries, drain
from lmtp_proxy.ctl.migrate import command as ctl_migrate
from lmtp_proxy.ctl.validity import Validity
from lmtp_proxy.ctl.whom import to_be_drained, to_be_looked_up, to_be_moved
from lmtp_proxy.streams import put_right, say, say_lost, settle
from lmtp_proxy.text import count, safe, span

INTERRUPTED = 130  # as shells have it
_Verb: TypeAlias = Callable[[argparse.Namespace, Progress], Outcome]
_LOAD = 300.0  # seconds, for several loads of a very large file on a slow machine

_STATUSES = """exit status:
  0    done
  1    refused or failed, nothing changed
  2    done, but the outcome of some deliveries is uncertain; they are listed,
       unless a process that died before this one took them with it
  3    the change is in force, but it is not known that all is quiet: the time
       was up, or the proxy ended or was restarted meanwhile; or, by requeue:
       not all mail has come through
  64   wrong arguments
  74   done, but what it prints could not be written: a full disk, perhaps
  130  interrupted; the last line says what is so now

`lmtp-proxyctl VERB --help` says what the verb does and what it waits for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, which --help explains."""
    put_right()
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # while it says how things are
        return INTERRUPTED
    finally:
        settle(sys.stdout, sys.stderr)


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    progress = Progress(sys.stderr)
    try:
        outcome: Outcome = (_on_all_hosts if options.fleet is not None else options.verb)(options, progress)
    except Failed as failed:
        return _fail(options, failed)
    except ControlError as error:
        return _fail(options, Failed(error.status, str(error)))
    except ModuleNotFoundError as error:
        return _fail(options, Failed(REFUSED, f"Python has no module {error.name}: apt install python3-{error.name}"))
    except KeyboardInterrupt:
        waiting = f" while waiting for {deliveries(progress.pending)}" if progress.pending else ""
        return _fail(options, Failed(INTERRUPTED, f"{progress.state}; interrupted{waiting}"))
    document = {**outcome.document, "status": outcome.status}
    lost = say(sys.stdout, [json.dumps(document)] if options.json else outcome.lines)
    errors = [f"lmtp-proxyctl: warning: {warning}" for warning in outcome.warnings]
    say(sys.stderr, [*errors, f"lmtp-proxyctl: {outcome.error}"] if outcome.error else errors)
    return outcome.status if lost is None else outcome.status or say_lost("lmtp-proxyctl", lost)


def _fail(options: argparse.Namespace, failed: Failed) -> int:
    if options.json:
        document = {**failed.document, "error": failed.text, "errors": failed.details, "status": failed.status}
        say(sys.stdout, [json.dumps(document)])
    say(sys.stderr, [*map(safe, failed.details), f"lmtp-proxyctl: {safe(failed.text)}"])
    return failed.status


def _client(options: argparse.Namespace) -> ControlClient:
    return ControlClient(options.socket or ctl_files.control_socket(options.config))


def _on_all_hosts(options: argparse.Namespace, progress: Progress) -> Outcome:
    from lmtp_proxy.ctl.fleet.command import on_all_hosts

    return on_all_hosts(options, progress)


# --- verbs -----------------------------------------------------------------------------------------------------------


def _status(options: argparse.Namespace, _progress: Progress) -> Outcome:
    from lmtp_proxy.config.users_files import digest_on_disk

    answer = _client(options).get("/status")
    config = answer.object("config")
    more = config.texts("users_file") if "users_file" in config.document else ()  # of a process of before
    on_disk = digest_on_disk(config.text("path"), more)
    return Outcome({**answer.document, "sha256_on_disk": on_disk}, show.status(answer, on_disk))


def _lookup(options: argparse.Namespace, _progress: Progress) -> Outcome:
    from urllib.parse import quote

    address = to_be_looked_up(options)
    client = _client(options)
    answer = client.get(f"/lookup?address={quote(address, safe='')}")
    path = client.get("/status").object("config").text("path")
    return Outcome({**answer.document, "path": path}, show.lookup(answer, answer.document.get("file") or path))


def _reload(options: argparse.Namespace, progress: Progress) -> Outcome:
    client = _client(options)
    try:
        answer = client.post(
            "/reload",
            {"force": True} if options.force else {},
            timeout=_LOAD,
            tick=lambda _: progress.waiting("the reload"),
        )
    except Refusal as refusal:
        if refusal.code not in (409, 502):
            raise
        status = REFUSED if refusal.code == 409 else UNPROVEN  # some workers have it, and some have not
        raise Failed(status, str(refusal), refusal.answer.texts("errors"), refusal.answer.document) from refusal
    what = f"generation {answer.integer('generation')} active: {answer.text('changes')}"
    lines = show.wrapped(f"{what} ({span(answer.number('seconds'))})")
    restart = answer.texts("restart")
    warning = [f"a change of {', '.join(restart)} takes effect at the next start only"] if restart else []
    return Outcome(answer.document, lines, warnings=warning)


def _drain(options: argparse.Namespace, progress: Progress) -> Outcome:
    users = to_be_drained(options)
    client = _client(options)
    request: dict[str, object] = {"all": True} if options.all else {"users": users}
    instance = client.get("/status").text("instance")
    try:
        drained = drain(client, request, options.timeout, progress, instance, edited=True)
    except Refusal as refusal:
        if refusal.code < 500:
            raise
        raise Failed(UNPROVEN, str(refusal), (), refusal.answer.document) from refusal  # a worker does not answer
    except ControlError as error:
        raise Failed(UNPROVEN, f"{error}; if lmtp-proxy died, {OLD_STORE}") from error
    everybody = "all users" if options.all else count(len(users), "user")
    routes = drained.answer.object("routes").optional_texts()
    lines = drained.lines({user: f"on {to or 'no backend'}" for user, to in routes.items()}, drained.text, everybody)
    late = "" if drained.done else f"not all is quiet after {options.timeout:g} s: drain again, with a longer --timeout"
    return Outcome(drained.document(), lines, drained.status, error=late)


def _move(options: argparse.Namespace, progress: Progress) -> Outcome:
    from lmtp_proxy.ctl.move import Order, move
    from lmtp_proxy.ctl.names import key_of_domain

    if options.clear:
        from lmtp_proxy.ctl.table import clear_marks

        if options.file is not None:
            options.parser.error("--clear takes users, and no list")
        return clear_marks(options.config, options.names)
    *users, backend = options.names
    if options.file is None and not users:
        options.parser.error("name the users and then the backend they move to")
    if options.file is not None and users:
        options.parser.error("name the users either in the list or here")
    if options.differ:
        options.parser.error("--differ is for --fleet")
    keys = to_be_moved(options, users)
    domain = options.domain and key_of_domain(options.domain)
    client = _client(options)
    validity = Validity(options.not_before, options.not_after)
    if options.not_before or options.not_after or options.dry_run:  # a fleet's, who takes silence for the end
        progress.again = 1.0
    order = Order(
        users=keys,
        backend=backend,
        timeout=options.timeout,
        preflight=not options.no_preflight,
        domain=domain,
        also=options.also,
        only_from=options.only_from,
        validity=validity,
        dry_run=options.dry_run,
    )
    return move(client, order, progress)


def _table(options: argparse.Namespace, _progress: Progress) -> Outcome:
    from lmtp_proxy.ctl import table

    if options.what == "import":
        if options.file is None:
            options.parser.error("name the file that has the users")
        return table.bring(options.config, options.file)
    if options.file is not None or (options.print and options.what != "init"):
        options.parser.error(f"{options.what} takes no {'file' if options.file is not None else '--print'}")
    if options.what == "init":
        return table.make(options.config, only_print=options.print)
    return table.bring_out(options.config) if options.what == "export" else table.examine(options.config)


def _inflight(options: argparse.Namespace, _progress: Progress) -> Outcome:
    answer = _client(options).get("/inflight")
    return Outcome(answer.document, show.flights(answer.objects("in_flight")))


def _sessions(options: argparse.Namespace, _progress: Progress) -> Outcome:
    answer = _client(options).get("/sessions")
    return Outcome(answer.document, show.sessions(answer.objects("sessions")))


def _backends(options: argparse.Namespace, _progress: Progress) -> Outcome:
    answer = _client(options).get("/backends")
    return Outcome(answer.document, show.backends(answer.objects("backends")))


def _config(options: argparse.Namespace, _progress: Progress) -> Outcome:
    answer = _client(options).get("/config")
    return Outcome(answer.document, show.config(answer))


def _probe(options: argparse.Namespace, progress: Progress) -> Outcome:
    from lmtp_proxy.ctl.names import given, keys_of
    from lmtp_proxy.ctl.probe import probe

    if options.deliver is not None and (options.rcpt or len(options.backends) != 1):
        options.parser.error("--deliver is for one BACKEND, and goes without --rcpt")
    users = keys_of(given([options.deliver] if options.deliver is not None else options.rcpt), "nothing was asked")
    return probe(_client(options), options.backends, users, progress, deliver=options.deliver is not None)


def _check(options: argparse.Namespace, progress: Progress) -> Outcome:
    client = _client(options)
    path = options.file and os.path.abspath(options.file)
    path = path or client.get("/status").object("config").text("path")
    doing = f"{path} to be read and compared"
    answer = client.post("/check", {"path": path}, timeout=_LOAD, tick=lambda _: progress.waiting(doing))
    if errors := answer.texts("errors"):
        from lmtp_proxy.config.values import how_many

        raise Failed(REFUSED, f"{path}: {count(how_many(errors), 'error')}", errors, {"path": path})
    return Outcome({**answer.document, "path": path}, show.check(answer, path))


def _uncertain(options: argparse.Namespace, _progress: Progress) -> Outcome:
    remembered: list[Answer] | None = None
    warnings = []
    try:
        answer = _client(options).get("/uncertain")
        log, remembered = answer.optional_text("log"), answer.objects("uncertain")
    except Unreachable as error:  # the log outlives the process
        log = None if options.socket else ctl_files.uncertain_log(options.config)
        if log is None:
            raise
        warnings.append(str(error))
    found, more = ctl_files.uncertain_records(log, remembered)
    records = [record for record in found if not options.users or ctl_files.concerns(record, options.users)]
    lines = [*show.uncertain(records), *show.wrapped(show.ADVICE, "")] if records else ["no uncertain deliveries"]
    document = {"log": log, "uncertain": [record.document for record in records]}
    return Outcome(document, lines, warnings=[*warnings, *more])


def _receipts(options: argparse.Namespace, _progress: Progress) -> Outcome:
    from lmtp_proxy.ctl.names import given, keys_of
    from lmtp_proxy.ctl.receipts import show_receipts

    return show_receipts(_client(options), keys_of(given(options.users), "nothing was asked"))


def _requeue(options: argparse.Namespace, progress: Progress) -> Outcome:
    from lmtp_proxy.ctl.mta import OWN, PROGRAMS, Mta, mta_called
    from lmtp_proxy.ctl.names import given, keys_of
    from lmtp_proxy.ctl.receipts import requeue_mail

    if options.mta in [(name,) for name in PROGRAMS]:
        mta = mta_called(options.mta[0], options.command)
    elif not any("{" in each for each in options.mta):
        options.parser.error(f"--mta: must be {', '.join(PROGRAMS)}, or a command with {{user}} in it")
    elif options.command is not None:
        options.parser.error("--command is how an MTA's program is called, and --mta is a command itself")
    else:
        mta = Mta(OWN, options.mta)
    users = keys_of(given(options.users), "nothing was tried")
    return requeue_mail(_client(options), users, mta, options.timeout, progress, only_print=options.print)


def _migrate(options: argparse.Namespace, progress: Progress) -> Outcome:
    return ctl_migrate.migrate(options, lambda: _client(options), progress)


# --- arguments ------------------------------------------------------------------------------------------------------

_TIMEOUT = "how long to wait for deliveries, in seconds (default: 600); what is done stays done"


_EXAMPLES = {
    "status": "status",
    "lookup": "lookup alice+lists@example.org",
    "reload": "reload",
    "drain": "drain alice@example.org --timeout 60",
    "move": "move alice@example.org new",
    "table": "table import /etc/lmtp-proxy.yml",
    "inflight": "--json inflight",
    "sessions": "sessions",
    "backends": "backends",
    "config": "config",
    "probe": "probe new --rcpt alice@example.org",
    "check": "check /etc/lmtp-proxy.yml.new",
    "uncertain": "uncertain alice@example.org",
    "receipts": "receipts alice@example.org",
    "requeue": "requeue alice@example.org",
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lmtp-proxyctl",
        description="Operates a running lmtp-proxy over its control socket.",
        epilog=_STATUSES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser)
    parser.add_argument("--version", action="version", version=f"lmtp-proxyctl {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")

    def add(name: str, run: _Verb, summary: str, waits: str, **settings: Any) -> argparse.ArgumentParser:
        if "epilog" not in settings:
            settings["epilog"] = f"example: lmtp-proxyctl {_EXAMPLES[name]}"
        verb = verbs.add_parser(name, help=summary, description=f"{summary}. {waits}", allow_abbrev=False, **settings)
        verb.set_defaults(verb=run, parser=verb, name=name)
        return verb

    add("status", _status, "Version, configuration, sessions, deliveries, backends", "Waits for nothing.")
    verb = add(
        "lookup",
        _lookup,
        "Where mail for an address goes, and why",
        "Shows the keys that are tried, the one that is found, its line in the file, and what the client would be "
        "told now. Waits for nothing; no backend is asked.",
    )
    verb.add_argument("address", type=text, nargs="?", metavar="ADDRESS", help="as in RCPT TO, with or without < >")
    verb.add_argument("--file", type=text, metavar="LIST", help="where the address stands instead; - is stdin")
    verb = add(
        "reload",
        _reload,
        "Put in force what the configuration file says",
        "Waits until it is in force, or was refused with all of its errors (exit status 1). Deliveries that were "
        "handed over before are not waited for: see drain. A file that removes many users at once is refused, see "
        "config.max_removed.",
    )
    verb.add_argument(
        "--force", action="store_true", help="also if it removes more users than config.max_removed allows"
    )
    verb = add(
        "drain",
        _drain,
        "Wait until nothing can reach the former backend of users any more",
        "Waits for reloads that were asked for, then for the backend's reply to each delivery of these users that was "
        "past its last look at the table when drain began; what comes later goes by the new table. The order is: "
        "edit, SIGUSR1 or reload, drain. Exit status 1 if that reload was refused.",
        usage="lmtp-proxyctl drain [options] USER... | --file LIST | --all",
    )
    verb.add_argument("users", type=text, nargs="*", metavar="USER", help="as in the users: section")
    verb.add_argument("--file", type=text, metavar="LIST", help="one user a line, # for comments; - is stdin")
    verb.add_argument("--all", action="store_true", help="all users")
    verb.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help=_TIMEOUT)
    verb = add(
        "move",
        _move,
        "Move users to a backend, or to reject or hold: edit, reload, drain",
        "Asks the backend whether it would take their mail, changes their lines in the configuration file, and waits "
        "for the reload and then, as drain does, for the deliveries that were on their way to the old backend. When "
        "it ends with status 0, nothing can reach that any more. If the file as it stands, or as edited, has an "
        "error, nothing is changed; nor if somebody else has edited it so that users move who are not named here.",
        usage="lmtp-proxyctl move [options] USER... BACKEND\n       lmtp-proxyctl move [options] --file LIST BACKEND\n"
        "       lmtp-proxyctl move --clear USER...",
    )
    verb.add_argument("names", type=text, nargs="+", metavar="USER... BACKEND", help="BACKEND may be reject or hold")
    verb.add_argument("--file", type=text, metavar="LIST", help="one user a line, # for comments; - is stdin")
    verb.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help=_TIMEOUT)
    verb.add_argument("--no-preflight", action="store_true", help="do not ask the backend first")
    verb.add_argument("--also", action="store_true", help="put in force, too, what others have edited meanwhile")
    verb.add_argument("--domain", type=text, help="ask it for NAME@DOMAIN where a user is a bare NAME")
    verb.add_argument(
        "--only-from",
        type=names,
        metavar="BACKEND,...",
        help="change nothing unless all of them are on one of these; - is on no line",
    )
    verb.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    verb.add_argument(
        "--clear", action="store_true", help="in config.table: take away the marks of a mover who is gone"
    )
    verb.add_argument("--differ", action="store_true", help="with --fleet: also if the hosts do not say the same")
    verb.add_argument("--not-before", type=moment, help=argparse.SUPPRESS)  # of a fleet's orders, see validity
    verb.add_argument("--not-after", type=moment, help=argparse.SUPPRESS)
    verb = add(
        "table",
        _table,
        "The database of config.table: init makes it, import brings users into it, export writes them out, check "
        "says what is wrong",
        "Asks no proxy, and waits for nothing but the database. import takes a configuration with users, or a file of "
        "users alone, into a table that has none; export prints them as such a file. Exit status 1 if something is "
        "wrong.",
        usage="lmtp-proxyctl table [options] init [--print] | import FILE | export | check",
    )
    verb.add_argument("what", choices=("init", "import", "export", "check"), help="what to do")
    verb.add_argument("file", type=text, nargs="?", metavar="FILE", help="for import")
    verb.add_argument("--print", action="store_true", help="print the statements of init, and run none")
    add("inflight", _inflight, "Deliveries under way", "Waits for nothing.")
    add("sessions", _sessions, "Connections of clients", "Waits for nothing.")
    add("backends", _backends, "Backends with their state and counters", "Waits for nothing.")
    add(
        "config",
        _config,
        "The configuration in force: each key with its value, also those that the file leaves to their defaults",
        "Without users, and without passwords. Waits for nothing.",
    )
    verb = add(
        "probe",
        _probe,
        "Whether the stores can be reached, and would take mail: connect, LHLO, no message",
        "The running proxy asks each of them, with its own user, credentials and deadlines, and says what it offers "
        "and how long it took. With --rcpt also MAIL, RCPT and RSET. Waits for their answers. Exit status 1 if one "
        "does not answer, or takes no mail for a user. With --deliver one store is sent a test mail.",
    )
    verb.add_argument("backends", type=text, nargs="*", metavar="BACKEND", help="default: all")
    verb.add_argument(
        "--rcpt",
        type=text,
        action="append",
        default=[],
        metavar="USER",
        help="would it take their mail? as often as wanted",
    )
    verb.add_argument(
        "--deliver", type=text, metavar="USER", help="send the one BACKEND a test mail for this user, and look there"
    )
    verb = add(
        "check",
        _check,
        "What a configuration file would change",
        "Compares it with what runs, and changes nothing. Waits until it is read. Exit status 1 if it has errors.",
    )
    verb.add_argument("file", type=text, nargs="?", metavar="FILE", help="default: the running proxy's own")
    verb = add(
        "uncertain",
        _uncertain,
        "Deliveries whose outcome is unknown: the final dot was sent, and no reply came",
        "Reads config.uncertain_log, which outlives the process; without one, shows what the process remembers. "
        "Waits for nothing.",
    )
    verb.add_argument("users", type=text, nargs="*", metavar="USER", help="only theirs")
    verb = add(
        "receipts",
        _receipts,
        "What users got from which backend, and which mail waits for them",
        "From config.receipts; also when something may be missing there. Waits until all that has happened is written.",
    )
    verb.add_argument("users", type=text, nargs="+", metavar="USER", help="as in the users: section")
    verb = add(
        "requeue",
        _requeue,
        "Have the MTA try again, at once, the mail that was deferred for users",
        "Runs `postqueue -i ID` for exactly these mails, whose ids are in the receipts; those of another MTA are "
        "found in its queue. Waits until each has come again; one that was refused a moment ago needs more than one "
        "run. Exit status 0 if none waits any more, 3 if one was deferred again or did not come in time, 1 if the "
        "command failed.",
    )
    verb.add_argument("users", type=text, nargs="+", metavar="USER", help="as in the users: section")
    verb.add_argument("--print", action="store_true", help="print the commands and run none")
    verb.add_argument(
        "--mta",
        type=command,
        default=("postfix",),
        metavar="MTA",
        help="postfix (default), exim, sendmail, opensmtpd, or a command of your own, run for each {user}",
    )
    verb.add_argument(
        *("--command", "--postqueue"),
        type=command,
        metavar="COMMAND",
        help='how its program is called, e.g. "postqueue -c /etc/postfix-in"; no shell',
    )
    verb.add_argument("--timeout", type=seconds, default=10.0, metavar="S", help="seconds to wait (default: 10)")
    verb = add(
        "migrate",
        _migrate,
        ctl_migrate.SUMMARY,
        ctl_migrate.DESCRIPTION,
        epilog=ctl_migrate.STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=ctl_migrate.USAGE,
    )
    ctl_migrate.add_arguments(verb)
    for verb in verbs.choices.values():  # below its own
        add_common_options(verb.add_argument_group("options of all verbs"), unset=True)
    return parser
