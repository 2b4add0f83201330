# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether each store can be reached and would take mail, before anybody sends any: up to RCPT, and no more.

Or one test mail into one store, to see into whose mailbox that puts it.

It is the running proxy that talks to the stores: from its machine, as its user, with its credentials.
"""

from collections.abc import Sequence
from functools import partial

from lmtp_proxy.ctl import output as show
from lmtp_proxy.ctl.client import Answer, ControlClient
from lmtp_proxy.ctl.drain import DONE, REFUSED, Failed, Outcome, Progress
from lmtp_proxy.ctl.move import NO_ROOM
from lmtp_proxy.ctl.names import quoted
from lmtp_proxy.text import count, span

_LONGEST = 600.0  # seconds for one store; its own timeouts end it before


def probe(
    client: ControlClient, backends: Sequence[str], users: Sequence[str], progress: Progress, *, deliver: bool = False
) -> Outcome:
    """Asks these stores, or all, one after another; each for all users. Raises Failed and ControlError.

    deliver: one store is sent a test mail for one user.
    """
    known = [each.text("name") for each in client.get("/backends").objects("backends")]
    for name in backends:
        if name not in known:
            hint = show.did_you_mean(name, known)
            raise Failed(REFUSED, f"there is no backend {name} in the running configuration{hint}; nothing was asked")
    lines: list[str] = []
    found: list[dict[str, object]] = []
    bad = 0
    for name in dict.fromkeys(backends) or known:
        progress.step("nothing was changed")
        body = {"backend": name, "recipients": [quoted(user) for user in users], "mail": bool(users)}
        body |= {"deliver": True} if deliver else {}
        answer = client.post("/preflight", body, timeout=_LONGEST, tick=partial(_tick, progress, name))
        fine = answer.has_null("refused") and all(map(_taken, answer.objects("replies")))
        fine = fine and (not deliver or _stored(answer))
        bad += not fine
        found.append({**answer.document, "ok": fine})
        lines += _store(answer)
    if not found:
        lines.append("there are no backends")
    error = f"{bad:,} of {count(len(found), 'store')} {'is' if bad == 1 else 'are'} not as wanted" if bad else ""
    return Outcome({"backends": found}, lines, REFUSED if bad else DONE, error=error)


def _tick(progress: Progress, name: str, _waited: float) -> None:
    progress.waiting(f"{name} to answer")


def _taken(reply: Answer) -> bool:
    code = reply.integer("code")
    return code // 100 == 2 or code in NO_ROOM


def _stored(answer: Answer) -> bool:
    return not answer.has_null("final") and answer.object("final").integer("code") // 100 == 2


def _store(answer: Answer) -> list[str]:
    """One line of the store, one of each user, and one of the test mail."""
    place, refused, offers = show.place(answer), answer.optional_text("refused"), answer.texts("offers")
    if answer.has_null("ready"):
        lines = show.wrapped(f"{place}: FAILED after {span(answer.number('seconds'))}: {refused}")
    else:
        lines = show.wrapped(
            f"{place}: ready in {span(answer.number('ready'))}, offers {', '.join(offers) or 'nothing'}"
        )
        if refused is not None:
            lines += show.wrapped(f"    FAILED after {span(answer.number('seconds'))}: {refused}", " " * 8)
    if not answer.has_null("tls"):
        tls = answer.object("tls")
        lines += show.wrapped(f"    {show.tls(tls)}", " " * 8)
        if not tls.has_null("sha256"):
            digests = f"of it {tls.text('sha256')}, of its public key {tls.text('key_sha256')}"
            lines += show.wrapped(f"    SHA-256 {digests}", " " * 8)
    for reply in answer.objects("replies"):
        failed = "" if _taken(reply) else "FAILED: "
        lines += show.wrapped(f"    {failed}{reply.text('recipient')}: {reply.text('reply')}", " " * 8)
    if not answer.has_null("final"):
        failed = "" if _stored(answer) else "FAILED: "
        what = f"test mail {answer.text('message_id')}: {answer.object('final').text('reply')}"
        lines += show.wrapped(f"    {failed}{what}", " " * 8)
    return lines
