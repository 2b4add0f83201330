"""The failure table as data: what a backend does in which phase, and what its two recipients are told for it.

Each case is one backend script with two recipients on it, `first` and `second`. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.script import (
    FULL_OFFER,
    BodyTrigger,
    Close,
    Drip,
    Hang,
    Pause,
    Reset,
    Script,
    Stall,
    Steps,
    raw,
    say,
)

FIRST, SECOND = "first", "second"  # local parts that scripts know by; the test adds the case's domain


@dataclass(frozen=True, slots=True)
class Told:
    """What a recipient hears. `when` is "rcpt", "final" or "either"; `replies` are the permitted ones.

    A reply of the proxy's own is given by code and enhanced code; one handed on from the backend stands whole, with
    `verbatim` set: code, enhanced code and text must be the same.
    """

    when: str
    replies: tuple[str, ...]
    verbatim: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One row. `fate` is what becomes of the backend's connection:

    "none" (there is none), "close" (closed at once, without a final dot unless it had been sent), "reset" (no DATA
    follows; RSET, QUIT or the end), "keep" (the other recipient is delivered on the same connection).
    """

    name: str
    script: Script
    first: Told
    second: Told
    fate: str
    peer: str = "listening"
    keys: Mapping[str, object] = field(default_factory=dict)
    host: str | None = None  # TCP only: replaces the address
    body: str = "small"  # "small", "paused" (in two parts with a wait) or "large" (more than any socket buffer)
    uncertain: bool = False  # the log must say that the mail may be delivered
    alarm: bool = False  # an error in the log names the backend


def own(when: str, *replies: str) -> Told:
    return Told(when, replies)


def passed(when: str, reply: str) -> Told:
    return Told(when, (reply,), verbatim=True)


def both(name: str, script: Script, told: Told, fate: str, **more: object) -> Case:
    return Case(name, script, told, told, fate, **more)  # type: ignore[arg-type]


CLOSE: Steps = (Close(),)
RESET: Steps = (Reset(),)
HANG: Steps = (Hang(),)
STALL: Steps = (Stall(1.2),)  # longer than the deadline for writing, then it looks at all that was sent
FULL_LINE = b"250 2.0.0 " + b"x" * 4200 + b"\r\n"
STORED = passed("final", "250 2.0.0 stored")
UNREACHABLE = own("rcpt", "451 4.4.1")
LOST = own("rcpt", "451 4.4.2")
STRANGE = own("rcpt", "451 4.3.0")
GOING = own("rcpt", "451 4.3.2")
DENIED = own("rcpt", "451 4.7.0")
LOST_LATE = own("final", "451 4.4.2")
STRANGE_LATE = own("final", "451 4.3.0")
GOING_LATE = own("final", "451 4.3.2")
CREDENTIALS: Mapping[str, object] = {"user": "proxy", "password": "secret-word"}
AUTH_OFFER = (*FULL_OFFER, "AUTH PLAIN")

# Replies about our conversation, not about the mail: verbatim they would bounce all mail of that store.
ABOUT_US = [
    *((code, "5.5.1 You must authenticate first", STRANGE) for code in (500, 502, 503)),
    (504, "5.5.4 not implemented", STRANGE),
    *((code, "Authentication required", DENIED) for code in (530, 534, 535, 538)),
]

CONNECT = [
    both("connect-refused", Script(), UNREACHABLE, "none", peer="refused"),
    both("connect-absent", Script(), UNREACHABLE, "none", peer="absent"),
    both("connect-backlog-full", Script(), UNREACHABLE, "none", peer="full"),
    both("connect-unresolvable", Script(), UNREACHABLE, "none", peer="refused", host="nowhere.invalid"),
]


GREETING = [
    both(f"{phase}-{name}", Script().at(phase, steps), told, "close")
    for phase in ("greeting", "lhlo")
    for name, steps, told in (
        ("silence", HANG, LOST),
        ("drip", (Drip(b"220 abcdefghijklmnop\r\n", 0.2),), LOST),
        ("close", CLOSE, LOST),
        # On TCP a reset right behind the handshake may be met by the connect itself.
        ("reset", RESET, own("rcpt", "451 4.4.2", "451 4.4.1") if phase == "greeting" else LOST),
        ("450", say("450 4.3.1 later"), STRANGE),
        ("554", say("554 5.3.2 never"), STRANGE),
        ("421", say("421 4.3.2 going down"), GOING),
        ("garbage", raw(b"\x00\xff\x80 SSH-2.0\r\n"), STRANGE),
        ("354", say("354 go on"), STRANGE),
    )
]
GREETING += [
    both(f"lhlo-{code}", Script().at("lhlo", say(f"{code} {text}")), told, "close", alarm=True)
    for code, text, told in ABOUT_US
]

_AUTH = [
    both("auth-535", Script(offer=AUTH_OFFER, auth=say("535 5.7.8 wrong")), DENIED, "close", alarm=True),
    both("auth-501", Script(offer=AUTH_OFFER, auth=say("501 5.5.4 undefined error!")), DENIED, "close", alarm=True),
    both("auth-454", Script(offer=AUTH_OFFER, auth=say("454 4.7.0 later")), DENIED, "close", alarm=True),
    both("auth-not-offered", Script(), DENIED, "close", alarm=True),
    both(
        "auth-no-usable-mechanism",
        Script(offer=(*FULL_OFFER, "AUTH GSSAPI EXTERNAL SCRAM-SHA-1")),
        DENIED,
        "close",
        alarm=True,
    ),
    both("auth-421", Script(offer=AUTH_OFFER, auth=say("421 4.3.2 going down")), GOING, "close"),
    both("auth-silence", Script(offer=AUTH_OFFER, auth=HANG), own("rcpt", "451 4.4.2", "451 4.7.0"), "close"),
    both("auth-close", Script(offer=AUTH_OFFER, auth=CLOSE), own("rcpt", "451 4.4.2", "451 4.7.0"), "close"),
]
AUTH = [
    Case(case.name, case.script, case.first, case.second, case.fate, keys=CREDENTIALS, alarm=case.alarm)
    for case in _AUTH
]

MAIL = [
    both("mail-430", Script(mail=say("430 Authentication required")), DENIED, "close", alarm=True),
    *(
        both(f"mail-{code}", Script(mail=say(f"{code} {text}")), told, "close", alarm=True)
        for code, text, told in ABOUT_US
    ),
    both("mail-501", Script(mail=say("501 5.1.7 bad sender")), passed("rcpt", "501 5.1.7 bad sender"), "reset"),
    both("mail-555", Script(mail=say("555 5.5.4 no")), passed("rcpt", "555 5.5.4 no"), "reset"),  # nothing to mean
    both("mail-452", Script(mail=say("452 4.3.1 no space")), passed("rcpt", "452 4.3.1 no space"), "reset"),
    both("mail-553", Script(mail=say("553 5.1.8 bad sender")), passed("rcpt", "553 5.1.8 bad sender"), "reset"),
    both("mail-bare-550", Script(mail=say("550 bad sender")), passed("rcpt", "550 5.0.0 bad sender"), "reset"),
    both("mail-421", Script(mail=say("421 4.3.2 going down")), GOING, "close"),
    both("mail-silence", Script(mail=HANG), LOST, "close"),
    both("mail-drip", Script(mail=(Drip(b"250 2.1.0 abcdefghijklmnop\r\n", 0.2),)), LOST, "close"),
    both("mail-close", Script(mail=CLOSE), LOST, "close"),
    both("mail-reset", Script(mail=RESET), LOST, "close"),
    both("mail-354", Script(mail=say("354 go on")), STRANGE, "close"),
    both("mail-garbage", Script(mail=raw(b"\xfe\xff\r\n")), STRANGE, "close"),
    both("mail-surplus", Script(mail=say("250 2.1.0 ok", "250 2.1.0 ok again")), own("either", "451 4.3.0"), "close"),
    both("mail-codes-differ", Script(mail=say("250-2.1.0 ok", "550 5.1.0 no")), STRANGE, "close"),
]


def rcpt(name: str, steps: Steps, first: Told, second: Told, fate: str, *, alarm: bool = False) -> Case:
    """The fault is in the answer to the first recipient."""
    return Case(name, Script(rcpt_by={FIRST: steps}), first, second, fate, alarm=alarm)


RCPT = [
    *(rcpt(f"rcpt-{code}", say(f"{code} {text}"), told, told, "close", alarm=True) for code, text, told in ABOUT_US),
    *(
        rcpt(f"rcpt-504-{text[:5]}", say(f"504 {text}"), passed("rcpt", f"504 {text}"), STORED, "keep")
        for text in ("5.5.2 need fully-qualified address", "5.1.2 bad domain")
    ),
    rcpt("rcpt-555", say("555 5.5.4 no"), passed("rcpt", "555 5.5.4 no"), STORED, "keep"),
    rcpt("rcpt-550", say("550 5.1.1 no such user"), passed("rcpt", "550 5.1.1 no such user"), STORED, "keep"),
    rcpt("rcpt-452", say("452 4.2.2 over quota"), passed("rcpt", "452 4.2.2 over quota"), STORED, "keep"),
    rcpt("rcpt-501", say("501 5.5.4 missing domain"), passed("rcpt", "501 5.5.4 missing domain"), STORED, "keep"),
    rcpt("rcpt-bare-450", say("450 later"), passed("rcpt", "450 4.0.0 later"), STORED, "keep"),
    rcpt("rcpt-no-text", say("550"), own("rcpt", "550 5.0.0"), STORED, "keep"),
    rcpt("rcpt-251", say("251 2.1.5 will forward"), STORED, STORED, "keep"),
    rcpt("rcpt-421", say("421 4.3.2 going down"), GOING, GOING, "close"),
    rcpt("rcpt-silence", HANG, LOST, LOST, "close"),
    rcpt("rcpt-drip", (Drip(b"250 2.1.5 abcdefghijklmnop\r\n", 0.2),), LOST, LOST, "close"),
    rcpt("rcpt-close", CLOSE, LOST, LOST, "close"),
    rcpt("rcpt-reset", RESET, LOST, LOST, "close"),
    rcpt("rcpt-354", say("354 go on"), STRANGE, STRANGE, "close"),
    rcpt("rcpt-199", say("199 what"), STRANGE, STRANGE, "close"),
    rcpt("rcpt-garbage", raw(b"\x80\x81\r\n"), STRANGE, STRANGE, "close"),
    rcpt("rcpt-partial-close", (*raw(b"250 2.1"), Close()), LOST, LOST, "close"),
    rcpt("rcpt-partial-silence", (*raw(b"250-2.1.5 first\r\n"), Hang()), LOST, LOST, "close"),
    Case(
        "rcpt-second-421",
        Script(rcpt_by={SECOND: say("421 4.3.2 going down")}),
        own("either", "451 4.3.2"),
        GOING,
        "close",
    ),
    Case("rcpt-second-close", Script(rcpt_by={SECOND: CLOSE}), own("either", "451 4.4.2"), LOST, "close"),
    Case("rcpt-second-silence", Script(rcpt_by={SECOND: HANG}), own("either", "451 4.4.2"), LOST, "close"),
    Case(
        "rcpt-surplus",
        Script(rcpt_by={SECOND: (*say("250 2.1.5 ok", "250 2.1.5 ok again"), Pause(0.2))}),
        own("either", "451 4.3.0"),
        own("either", "451 4.3.0"),
        "close",
    ),
]

DATA = [
    *(
        both(
            f"data-{code}",
            Script(data=say(f"{code} {text}")),
            own("final", told.replies[0]),
            "close",
            alarm=True,
        )
        for code, text, told in ABOUT_US
    ),
    both("data-452", Script(data=say("452 4.3.1 no space")), passed("final", "452 4.3.1 no space"), "reset"),
    both("data-554", Script(data=say("554 5.6.1 not now")), passed("final", "554 5.6.1 not now"), "reset"),
    both("data-bare-554", Script(data=say("554 no")), passed("final", "554 5.0.0 no"), "reset"),
    both("data-250", Script(data=say("250 2.0.0 thanks")), STRANGE_LATE, "close"),
    both("data-334", Script(data=say("334 go")), STRANGE_LATE, "close"),
    both("data-421", Script(data=say("421 4.3.2 going down")), GOING_LATE, "close"),
    both("data-garbage", Script(data=raw(b"\xff\r\n")), STRANGE_LATE, "close"),
    both("data-silence", Script(data=HANG), own("final", "451 4.4.2", "451 4.3.0"), "close"),
    both("data-close", Script(data=CLOSE), own("final", "451 4.4.2", "451 4.3.0"), "close"),
    both("data-reset", Script(data=RESET), own("final", "451 4.4.2", "451 4.3.0"), "close"),
    both(
        "data-surplus",  # to be seen before the data is sent, or as an early reply within it
        Script(data=say("354 go", "250 2.0.0 already")),
        own("final", "451 4.3.0", "451 4.4.2"),
        "close",
        body="paused",
    ),
]


def body(name: str, steps: Steps, told: Told, kind: str = "paused", *, alarm: bool = False) -> Case:
    return both(name, Script(body=BodyTrigger(1000, steps)), told, "close", body=kind, alarm=alarm)


BODY = [
    body("body-503", say("503 5.5.1 RCPT first"), STRANGE_LATE, alarm=True),
    body("body-530", say("530 5.7.0 Authentication required"), own("final", "451 4.7.0"), alarm=True),
    body("body-452", say("452 4.3.1 disk full"), passed("final", "452 4.3.1 disk full")),
    body("body-552", say("552 5.2.2 quota"), passed("final", "552 5.2.2 quota")),
    body("body-bare-552", say("552 quota"), passed("final", "552 5.0.0 quota")),
    body("body-552-close", (*say("552 5.2.2 quota"), Close()), passed("final", "552 5.2.2 quota")),
    body("body-250", say("250 2.0.0 stored"), LOST_LATE),
    body("body-354", say("354 more"), LOST_LATE),
    body("body-two-250", say("250 2.0.0 stored", "250 2.0.0 stored"), LOST_LATE),
    body("body-421", say("421 4.3.2 going down"), GOING_LATE),
    body("body-close", CLOSE, LOST_LATE),
    body("body-reset", RESET, LOST_LATE),
    body("body-stall", STALL, LOST_LATE, "large"),
    body("body-452-and-stall", (*say("452 4.3.1 disk full"), *STALL), passed("final", "452 4.3.1 disk full"), "large"),
]


def late(name: str, steps: Steps, told: Told, *, uncertain: bool = False) -> list[Case]:
    """The fault is in the first final reply, or in the second after a good first one."""
    other = told
    if told.verbatim:
        other, fate = STORED, "keep"
    else:
        fate = "close"
    return [
        Case(f"{name}-first", Script(final_at={0: steps}), told, other, fate, uncertain=uncertain),
        Case(f"{name}-second", Script(final_at={1: steps}), STORED, told, fate, uncertain=uncertain),
    ]


FINAL = [
    case
    for cases in (
        late("final-550", say("550 5.2.1 disabled"), passed("final", "550 5.2.1 disabled")),
        late("final-452", say("452 4.2.2 over quota"), passed("final", "452 4.2.2 over quota")),
        late("final-bare-452", say("452 over quota"), passed("final", "452 4.0.0 over quota")),
        late("final-bare-250", say("250 kept"), passed("final", "250 2.0.0 kept")),
        late("final-silence", HANG, LOST_LATE, uncertain=True),
        late("final-drip", (Drip(b"250 2.0.0 abcdefghijklmnop\r\n", 0.2),), LOST_LATE, uncertain=True),
        late("final-close", CLOSE, LOST_LATE, uncertain=True),
        late("final-partial-close", (*raw(b"250 2.0.0 sto"), Close()), LOST_LATE, uncertain=True),
        late("final-partial-lines", (*raw(b"250-2.0.0 a\r\n"), Close()), LOST_LATE, uncertain=True),
        late("final-421", say("421 4.3.2 going down"), GOING_LATE),
        late("final-354", say("354 more"), STRANGE_LATE, uncertain=True),
        late("final-garbage", raw(b"\xff\xfe\r\n"), STRANGE_LATE, uncertain=True),
        late("final-too-long", raw(FULL_LINE), STRANGE_LATE, uncertain=True),
        late("final-nul", raw(b"250 2.0.0 st\0ored\r\n"), STRANGE_LATE, uncertain=True),
        late("final-cr", raw(b"250 2.0.0 st\rored\r\n"), STRANGE_LATE, uncertain=True),
        late("final-codes-differ", raw(b"250-2.0.0 a\r\n550 5.0.0 b\r\n"), STRANGE_LATE),
    )
    for case in cases
]
FINAL.append(
    # Not with a good first reply: a reset may overtake bytes that were sent before it.
    both("final-reset", Script(final_at={0: RESET}), LOST_LATE, "close", uncertain=True)
)

CASES: list[Case] = [*CONNECT, *GREETING, *AUTH, *MAIL, *RCPT, *DATA, *BODY, *FINAL]
