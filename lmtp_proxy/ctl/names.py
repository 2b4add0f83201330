# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator calls a user -> the key that mail for it would hit.

A name that no RCPT can hit is a mistake: nothing would be in flight for it, whatever is on its way. It is taken as RCPT
would take it, so one that needs quotes has them. It does not know which users there are.
"""

import re
from collections.abc import Iterable, Sequence

from lmtp_proxy.ctl.arguments import WRONG_ARGUMENTS
from lmtp_proxy.ctl.drain import Failed
from lmtp_proxy.ctl.output import first
from lmtp_proxy.text import shown
from lmtp_proxy.wire.envelope import Recipient, parse_rcpt

_ATOM = re.compile(r"[^\x00-\x20\x7f\"(),:;<>@\[\]\\]+")
_MAX = 1024  # octets; the control socket takes no longer address


def key_of(name: str) -> str:
    """`alice@example.org` of that, of `<alice@example.org>` and of `"alice"@example.org`; `@domain` stays.

    Raises ValueError with what is wrong.
    """
    text = name[1:-1] if name.startswith("<") and name.endswith(">") else name
    whole = f"postmaster{text}" if text.startswith("@") else text
    octets = whole.encode("utf-8", "surrogatepass")
    parsed = parse_rcpt(b"TO:<" + octets + b">", smtputf8=True) if len(octets) <= _MAX else None
    # An address in quotes is a local part, which no mail has that is meant for the address.
    if not isinstance(parsed, Recipient) or (not parsed.domain and "@" in parsed.local_part):
        raise ValueError(f'"{shown(name)}" is no address that RCPT would take')
    if text.startswith("@"):
        return text
    return f"{parsed.local_part}@{parsed.domain}" if parsed.domain else parsed.local_part


def keys_of(names: Iterable[tuple[str, str]], said: str = "nothing was changed") -> list[str]:
    """Each once, in their order. names: where each stands (`list:3`, or nothing), and itself. said: what is so.

    Raises Failed with all that are wrong.
    """
    keys: dict[str, None] = {}
    wrong: list[str] = []
    for place, name in names:
        try:
            keys[key_of(name)] = None
        except ValueError as error:
            wrong.append(f"{place}: {error}" if place else str(error))
    if not wrong:
        return list(keys)
    if len(wrong) == 1:
        raise Failed(WRONG_ARGUMENTS, f"{wrong[0]}; {said}")
    raise Failed(WRONG_ARGUMENTS, f"{len(wrong):,} names are no addresses; {said}", first(wrong))


def quoted(key: str) -> str:
    """As it stands in RCPT TO: the local part in quotes where it needs them."""
    local_part, at, domain = key.rpartition("@")
    if not at:
        local_part, domain = key, ""
    if all(_ATOM.fullmatch(part) for part in local_part.split(".")):
        return key
    escaped = local_part.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"{at}{domain}'


def key_of_domain(name: str) -> str:
    """`example.org` of that and of `@example.org`. Raises Failed."""
    return keys_of([("--domain", f"@{name.removeprefix('@')}")])[0][1:]


def given(names: Sequence[str]) -> list[tuple[str, str]]:
    """Of the command line."""
    return [("", name) for name in names]
