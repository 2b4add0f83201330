# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the MTA try again, at once, the mail that was deferred for some users: `postqueue -i` for exactly these ids.

The ids come from the proxy's receipts. A mail that was refused a moment ago is still in Postfix' active queue, where
`postqueue -i` does nothing for it, and a moment later waits for minutes: so the proxy is asked again, and the command
run again, until it has seen each mail once more or the time is up. It changes nothing in the proxy.

Where the client said no id, the proxy knows only that something was deferred. Such mail is looked for in the queue, by
its recipient; when it has left the queue it is done. All mail of Exim, Sendmail and OpenSMTPD is of that kind. A
command of the site is run once for each user for whom something was deferred, and its exit status is believed.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lmtp_proxy.ctl.client import Answer, ControlClient
from lmtp_proxy.ctl.mta import OWN, Mta, Queued, QueueRun
from lmtp_proxy.routing.keys import FoldingError, KeyRules
from lmtp_proxy.wire.envelope import Recipient, parse_rcpt

WAIT = 10.0
"""Seconds for all that was asked for to come again."""

ARRIVED = "arrived"  # delivered, or refused for good: either way the sender knows
AGAIN = "deferred again"
GONE = "not in the queue"
ON_HOLD = "on hold in the queue"
WAITING = "not tried yet"
TRIED = "tried by the command"  # of the site, which says that nothing waits any more

POSTFIX = Mta()

_AT_ONCE = 1000  # users in one question, as many as are taken
_ASK = 60.0  # seconds for the proxy's answer
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_LOOK_AFTER = 1.0  # seconds until the queue itself is looked at, which takes Postfix some time if it is long
_MISSED = 2  # looks: a mail that goes from one queue of Postfix to another may be missed by one


@dataclass(slots=True)
class Mail:
    """One mail that was deferred for one user.

    Attributes:
        queue_id: empty for all that was deferred for the user, where a command of the site is to see to it.
        why: of the last time.
        last: then, in seconds since the epoch; where it was found in the queue, that of all such mail of the user.
        fate: ARRIVED, AGAIN, GONE, ON_HOLD, WAITING, TRIED, or what Mta.failed says.
        found: in the queue, by its recipient: the proxy does not know its id.
    """

    user: str
    queue_id: str
    why: str
    last: float
    fate: str = WAITING
    found: bool = False

    @property
    def settled(self) -> bool:
        """It waits for nothing any more, as far as the MTA and the proxy know."""
        return self.fate in (ARRIVED, GONE, TRIED)


@dataclass(frozen=True, slots=True)
class Unnamed:
    """What was deferred for one user without a queue id. It may have come since.

    Attributes:
        forwarded: its client says XFORWARD, and had no id for it: mail from sendmail(1).
        count: how often, not how many mails.
        last: when, in seconds since the epoch.
        why: of the last time.
    """

    forwarded: bool
    count: int
    last: float
    why: str


@dataclass(frozen=True, slots=True)
class RequeueOutcome:
    """What was done.

    Attributes:
        mails: the oldest first within each user.
        runs: the last one for each queue id; of a command of the site, for each user.
        unnamed: by user.
        listed: the queue could be looked through for those; True if that was not needed.
        mta: whose queue it is.
    """

    mails: Sequence[Mail]
    runs: Mapping[str, QueueRun]
    seconds: float
    unnamed: Mapping[str, Sequence[Unnamed]] = field(default_factory=dict)
    listed: bool = True
    mta: Mta = POSTFIX

    def ids(self, user: str) -> list[str]:
        """The queue ids that were deferred for `user`, as far as they are known."""
        return [mail.queue_id for mail in self.mails if mail.user == user and mail.queue_id]

    @property
    def silent(self) -> int:
        """Deferrals of clients that say no XFORWARD, and could: nobody knows in whose queue these mails are."""
        if not self.mta.names_mails:
            return 0
        return sum(each.count for rows in self.unnamed.values() for each in rows if not each.forwarded)

    @property
    def done(self) -> bool:
        """It is known that nothing waits any more."""
        return all(mail.settled for mail in self.mails) and self.listed and not self.silent

    @property
    def failed(self) -> list[QueueRun]:
        """The runs that did not go well."""
        return [run for run in self.runs.values() if not run.ok]


def deferred(client: ControlClient, users: Sequence[str], mta: Mta = POSTFIX) -> RequeueOutcome:
    """What is deferred for `users`, written as in `users:`; nothing is done. Raises ControlError."""
    known = _known(client, users, mta)
    if mta.name == OWN:
        return RequeueOutcome(_for_each_user(known), {}, 0.0, known.unnamed, mta=mta)
    work = _Work(mta)
    work.learn(known)
    return work.outcome(0.0)


def commands(done: RequeueOutcome) -> list[tuple[str, ...]]:
    """What is run for the mails of an outcome, each once."""
    return list(dict.fromkeys(done.mta.attempt(mail.queue_id or mail.user) for mail in done.mails))


@dataclass(slots=True)
class _Known:
    """What the proxy says.

    Attributes:
        mails: that are deferred, by their ids.
        unnamed: see RequeueOutcome.
        cut_off: how many deliveries are under way that will be deferred.
        whose: a mailbox -> the users whose it is.
        rules: how addresses become mailboxes; None if there was nothing to ask.
    """

    mails: list[Mail] = field(default_factory=list)
    unnamed: dict[str, list[Unnamed]] = field(default_factory=dict)
    cut_off: int = 0
    whose: dict[str, list[str]] = field(default_factory=dict)
    rules: KeyRules | None = None

    def users_of(self, address: str) -> set[str]:
        """Those of `unnamed` whose mail for `address` is, which is as Postfix lists it."""
        if self.rules is None:
            return set()
        octets = b"TO:<" + address.encode("utf-8", "surrogatepass") + b">"
        parsed = parse_rcpt(octets, smtputf8=True) if address.startswith('"') else None
        local_part, domain = address.rpartition("@")[::2] if "@" in address else (address, "")
        if isinstance(parsed, Recipient):
            local_part, domain = parsed.local_part, parsed.domain
        try:
            mailboxes = self.rules.mailboxes(self.rules.forms(local_part, domain), domain)
        except FoldingError:
            return set()
        return {user for mailbox in mailboxes for user in self.whose.get(mailbox, ()) if user in self.unnamed}


def _known(client: ControlClient, users: Sequence[str], mta: Mta) -> _Known:
    known = _Known()
    for answer in ask(client, users):
        known.cut_off += answer.integer("cut_off")
        rules = answer.object("key_rules")
        known.rules = KeyRules(
            rules.flag("case_sensitive"),
            rules.text("recipient_delimiter"),
            rules.flag("ignore_domain"),
            rules.text("default_domain"),
        )
        for user, mailbox in answer.object("mailboxes").optional_texts().items():
            known.whose.setdefault(mailbox or user, []).append(user)
        for user, document in answer.object("users").document.items():
            of_user = Answer(document, client.path)
            unnamed = [
                Unnamed(row.flag("forwarded"), row.integer("count"), row.number("last"), row.text("why"))
                for row in of_user.objects("unnamed")
            ]
            for row in of_user.objects("deferred"):
                if mta.names_mails:
                    known.mails.append(Mail(user, row.text("queue_id"), row.text("why"), row.number("last")))
                else:  # an id of another MTA's
                    unnamed.append(Unnamed(True, row.integer("count"), row.number("last"), row.text("why")))
            if unnamed:
                known.unnamed[user] = unnamed
    return known


def ask(client: ControlClient, users: Sequence[str]) -> Iterator[Answer]:
    """What is known of `users`, in one or more answers. Raises ControlError; Refusal 409 without `config.receipts`."""
    names = list(dict.fromkeys(users))
    for start in range(0, max(len(names), 1), _AT_ONCE):
        yield client.post("/receipts", {"users": names[start : start + _AT_ONCE]}, timeout=_ASK)


def requeue(
    client: ControlClient,
    users: Sequence[str],
    mta: Mta = POSTFIX,
    *,
    wait: float = WAIT,
    waiting: Callable[[int], None] = lambda _: None,
) -> RequeueOutcome:
    """Runs the MTA's command for each mail that is deferred for `users`, again until the proxy has seen it.

    Mail that is still coming in for the backend from which they were moved is waited for: it will be deferred, too.
    wait: seconds at most. waiting: called now and then with the number of mails that are waited for. Raises
    ControlError: of the first question, nothing was done; of a later one, the commands were run.
    """
    began = time.monotonic()
    known = _known(client, users, mta)
    if mta.name == OWN:
        return _by_own_command(client, users, mta, known, wait, waiting)
    work = _Work(mta)
    work.learn(known)
    pause = _FIRST_PAUSE
    while work.run() or known.cut_off:
        if time.monotonic() - began >= wait:
            break
        waiting(len(work.open) + known.cut_off)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        known = _known(client, users, mta)
        work.learn(known)
        if work.open and not known.unnamed and time.monotonic() - began >= _LOOK_AFTER:
            work.look()
    return work.outcome(time.monotonic() - began)


def _by_own_command(
    client: ControlClient,
    users: Sequence[str],
    mta: Mta,
    known: _Known,
    wait: float,
    waiting: Callable[[int], None],
) -> RequeueOutcome:
    """Once for each user, when what is still coming in for the former backend has been deferred, too."""
    began = time.monotonic()
    while known.cut_off and time.monotonic() - began < wait:
        waiting(known.cut_off)
        time.sleep(_FIRST_PAUSE)
        known = _known(client, users, mta)
    mails, runs = _for_each_user(known), dict[str, QueueRun]()
    for mail in mails:
        runs[mail.user] = run = mta.run(mta.attempt(mail.user))
        mail.fate = TRIED if run.ok else mta.failed
    if mails:
        known = _known(client, users, mta)
        now = {mail.user: mail for mail in _for_each_user(known)}
        for mail in mails:
            if mail.user in now and now[mail.user].last > mail.last and mail.fate == TRIED:
                mail.fate, mail.why, mail.last = AGAIN, now[mail.user].why, now[mail.user].last
    return RequeueOutcome(mails, runs, time.monotonic() - began, known.unnamed, mta=mta)


def _for_each_user(known: _Known) -> list[Mail]:
    """All that was deferred for a user as one."""
    last = {user: max(rows, key=lambda row: row.last) for user, rows in known.unnamed.items()}
    return [Mail(user, "", row.why, row.last) for user, row in last.items()]


@dataclass(slots=True)
class _Work:
    mta: Mta
    mails: dict[tuple[str, str], Mail] = field(default_factory=dict)
    runs: dict[str, QueueRun] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    known: _Known = field(default_factory=_Known)
    listed: bool = True

    @property
    def open(self) -> list[Mail]:
        """Those that may still be tried."""
        return [mail for mail in self.mails.values() if mail.fate == WAITING]

    def outcome(self, seconds: float) -> RequeueOutcome:
        """How it stands."""
        return RequeueOutcome(list(self.mails.values()), self.runs, seconds, self.known.unnamed, self.listed, self.mta)

    def learn(self, known: _Known) -> None:
        """What the proxy says now. What it does not list any more has arrived; what it has no name for is looked up."""
        self.known = known
        now = {(mail.user, mail.queue_id): mail for mail in known.mails}
        for name, mail in self.mails.items():
            seen = now.pop(name, None)
            if seen is not None and seen.last > mail.last:
                mail.fate, mail.why, mail.last = AGAIN, seen.why, seen.last
            elif seen is None and not mail.found:
                mail.fate = ARRIVED
        self.mails.update(now)
        if known.unnamed:
            self.look()

    def run(self) -> bool:
        """Once for each mail that is not settled; False if there is none (any more)."""
        for queue_id in dict.fromkeys(mail.queue_id for mail in self.open):
            done = self.mta.run(self.mta.attempt(queue_id))
            self.runs[queue_id] = done
            if not done.ok:
                self._settle({queue_id}, self.mta.failed)
                if done.status is None:  # nor will it for the others
                    self._settle({mail.queue_id for mail in self.open}, self.mta.failed)
                    break
        return bool(self.open)

    def look(self) -> None:
        """What has left the queue, by whatever hand, or is on hold there, is not waited for."""
        queue = self.mta.listed()
        self.listed = queue is not None or not self.known.unnamed
        if queue is None:
            return
        wanted = {mail.queue_id for mail in self.open}
        for queue_id in wanted - queue.keys():
            self.missed[queue_id] = self.missed.get(queue_id, 0) + 1
        enough = _MISSED if self.mta.names_mails else 1
        self._settle({queue_id for queue_id in wanted if self.missed.get(queue_id, 0) >= enough}, GONE)
        if self.known.unnamed:
            self._find(queue)
        self._settle({queue_id for queue_id in wanted & queue.keys() if queue[queue_id].queue == "hold"}, ON_HOLD)

    def _find(self, queue: Mapping[str, Queued]) -> None:
        """Mail without a name is known by its recipient alone."""
        whose: dict[str, set[str]] = {}
        here: set[tuple[str, str]] = set()
        for queue_id, entry in queue.items():
            for address, why in entry.recipients:
                if address not in whose:
                    whose[address] = self.known.users_of(address)
                for user in whose[address]:
                    here.add((user, queue_id))
                    self._see(user, queue_id, entry, why)
        for name, mail in self.mails.items():
            if mail.found and mail.fate == WAITING and name not in here and mail.queue_id in queue:
                mail.fate = GONE  # for this recipient; others of it wait

    def _see(self, user: str, queue_id: str, entry: Queued, why: str) -> None:
        last = max(each.last for each in self.known.unnamed[user])
        mail = self.mails.get((user, queue_id))
        if mail is None:
            fate = ON_HOLD if entry.queue == "hold" else WAITING
            self.mails[user, queue_id] = Mail(user, queue_id, why, last, fate, found=True)
        elif mail.found and mail.fate == WAITING and entry.queue == "deferred" and last > mail.last:
            mail.fate, mail.why, mail.last = AGAIN, why or mail.why, last

    def _settle(self, queue_ids: Collection[str], fate: str) -> None:
        for mail in self.open:
            if mail.queue_id in queue_ids:
                mail.fate = fate
