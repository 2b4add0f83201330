# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of a trial: two stores as an operator names them -> the text of a file. It touches none."""

import json
import re
from typing import Final

from lmtp_proxy.text import shown

MARK: Final = "# Written by lmtp-proxy --try."
"""How such a file begins."""
FORM: Final = "the absolute path of a socket, or HOST:PORT"
_PREFIX = re.compile(r"(lmtp:)?((unix|inet):)?(?=[^:])", re.IGNORECASE)  # as Postfix writes a next hop
_TCP = re.compile(r"\[?([0-9A-Za-z_.:-]+?)\]?:([0-9]{1,5})")


def store(text: str) -> str:
    """The lines of a backend's section for a store that is written as in Postfix. Raises ValueError."""
    place = _PREFIX.sub("", text.strip(), count=1)
    if place.startswith("/"):
        return f"    socket: {json.dumps(place, ensure_ascii=False)}\n"
    host, port = _host_and_port(place)
    return f"    host: {json.dumps(host)}\n    port: {port}\n"


def _host_and_port(text: str, form: str = FORM) -> tuple[str, int]:
    match = _TCP.fullmatch(text)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError(f'"{shown(text)}" must be {form}')
    return match[1], int(match[2])


def configuration(old: str, new: str, listen: str, control: str, user: str | None) -> str:
    """The text of the file. Raises ValueError."""
    host, port = _host_and_port(listen, "HOST:PORT")
    users = f"users:\n  {json.dumps(user, ensure_ascii=False)}: old\n" if user else ""
    return f"""\
{MARK} Everybody is on the store `old`, whoever is not in `users:`, too.
# See lmtp-proxy.yml(5) for all keys: a login, TLS, receipts.
config:
  socket: [{json.dumps(host)}, {port}]
  fallback_backend: old
  control:
    socket: {json.dumps(control, ensure_ascii=False)}
backends:
  old:
{store(old)}  new:
{store(new)}{users}"""
