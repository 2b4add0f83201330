#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A doveadm that is none: it tells of two stores that are in a file, in the way of a version of Dovecot.

It knows the two commands that the scripts of plans use, with `-f json`. As the real ones, of 2.3 and of 2.4, it ignores
settings (`-o`) that it does not know without a word. $STAND_IN names the file:

    {"version": ..., "server": "192.0.2.10:143", "old": {user: {folder: [[uid, Message-ID, size, flags], ...]}},
     "new": {...}}

Versions:

    2.3         has the setting mail_location
    2.4         has mail_driver and mail_path
    2.5         has other settings, so it reads its own store whatever they say
    quiet       as 2.4, but does not say whom it asked
    imapc       has `mail_driver = imapc` in its configuration: reads the old store whatever it is asked
    no json     as 2.4, but has no `-f json`
    no size     as 2.4, but calls the size otherwise
    odd number  as 2.4, but writes numbers in another way
    empty       prints an empty list
    silent      prints nothing
    half a list  as 2.4, but leaves out messages
    trouble     as 2.4, but ends with 0 after an error
"""

import json
import os
import sys
from pathlib import Path


def main() -> int:
    stand_in = json.loads(Path(os.environ["STAND_IN"]).read_text("utf-8"))
    version, server = stand_in["version"], stand_in["server"]
    settings, words, rest = {}, [], sys.argv[1:]
    form = ""
    while rest:
        word = rest.pop(0)
        if word == "-o":
            name, _, value = rest.pop(0).partition("=")
            settings[name] = value
        elif word == "-f":
            form = rest.pop(0)
        elif word == "-c":
            rest.pop(0)
        elif word == "-u":
            user = rest.pop(0)
        else:
            words.append(word)
    old = {
        "2.3": settings.get("mail_location") == "imapc:",
        "2.5": False,
        "imapc": True,
    }.get(version, settings.get("mail_driver") == "imapc" and settings.get("mail_path") == "")
    if old and version != "quiet":
        session = "<5784><qSeEOuZsDWuYFgAAg>" if version == "2.3" else ""
        told = f"imapc({server}): Connected to {server} (local 192.0.2.20:53790)"
        print(f"doveadm({user}){session}: Info: {told}", file=sys.stderr)
    if version == "trouble" and words[0] == "fetch":
        print(f"doveadm({user}): Error: Mailbox INBOX: Some messages could not be read", file=sys.stderr)
    if version == "silent":
        return 0
    folders = stand_in["old" if old else "new"].get(user, {})
    if version == "empty":
        folders = {}
    if words[:2] == ["mailbox", "status"]:
        rows = [
            {
                "mailbox": name,
                "messages": str(len(messages)),
                "uidnext": str(max((uid for uid, *_ in messages), default=0) + 1),
                "uidvalidity": "1795479208",
                "unseen": str(sum("\\Seen" not in flags for *_, flags in messages)),
            }
            for name, messages in folders.items()
        ]
    else:
        assert words[0] == "fetch", words
        rows = [
            {"mailbox": name, "uid": str(uid), "flags": flags, "size.virtual": str(size), "hdr.message-id": identity}
            for name, messages in folders.items()
            for uid, identity, size, flags in messages
        ]
    if version == "half a list" and words[0] == "fetch":
        rows = rows[: len(rows) // 2]
    if version == "no size":
        rows = [{name.replace("size.virtual", "size"): value for name, value in row.items()} for row in rows]
    if version == "odd number":
        rows = [{name: value + "." if name == "uidnext" else value for name, value in row.items()} for row in rows]
    if form == "json" and version != "no json":
        print(json.dumps(rows), end="")
    else:
        for row in rows:
            print(*(f"{name}={value}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
