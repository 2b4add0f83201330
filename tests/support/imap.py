# SPDX-License-Identifier: GPL-3.0-or-later
"""A scripted IMAP server: mailboxes to read, told of in the way of one server or another."""

from __future__ import annotations

import base64
import re
import socketserver
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

Folders = Mapping[str, list[tuple[int, str, int, str]]]
"""By name: UID, Message-ID, size and flags of each message."""


class FakeImap:
    """Use as a context manager. users: the folders of each.

    manner:
        one of these, "" as most servers do
        "flags last"     the flags stand behind the header
        "no size"        says nothing of sizes
        "no flags"       says nothing of flags
        "fewer"          leaves out the last message of each folder
        "twice"          tells of the first message of each folder twice
        "odd list"       answers LIST in another way
        "no folders"     has nothing for LIST
        "preauth"        asks for no login
        "own zone"       dates are of another zone, with a day of two digits
        "of the copy"    all messages arrived when they were copied
        "no dates"       says nothing of dates
        "odd dates"      writes dates in another way
    """

    def __init__(self, users: Mapping[str, Folders], manner: str = "") -> None:
        self.users = users
        self.manner = manner

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeImap:
        fake = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                _Conversation(fake, self.rfile, self.wfile).run()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Conversation:
    def __init__(self, fake: FakeImap, reader: Any, writer: Any) -> None:
        self._fake = fake
        self._reader = reader
        self._writer = writer
        self._folders: Folders = {}
        self._messages: list[tuple[int, str, int, str]] = []

    def say(self, line: str) -> None:
        self._writer.write(f"{line}\r\n".encode())

    def run(self) -> None:
        manner = self._fake.manner
        self.say("* PREAUTH hello" if manner == "preauth" else "* OK hello")
        for line in self._reader:
            tag, command, *rest = line.decode().rstrip("\r\n").split(" ", 2)
            done = "OK done"
            if command == "CAPABILITY":
                self.say("* CAPABILITY IMAP4rev1 AUTH=PLAIN")
            elif command == "AUTHENTICATE":
                self.say("+ ")
                user, _, password = base64.b64decode(self._reader.readline()).decode().split("\0")
                if password == "secret" and user in self._fake.users:
                    self._folders = self._fake.users[user]
                else:
                    done = "NO who are you?"
            elif command == "LIST" and manner != "no folders":
                for name in self._folders:
                    self.say(f'* LIST {"()" if manner != "odd list" else ""} "." "{name}"')
            elif command == "EXAMINE":
                self._messages = self._folders[rest[0].strip('"')]
                self.say(f"* {len(self._messages)} EXISTS")
            elif command == "FETCH":
                self._fetch(dates="INTERNALDATE" in rest[0])
            elif command == "LOGOUT":
                self.say("* BYE")
            self.say(f"{tag} {done}")

    def _fetch(self, dates: bool) -> None:
        manner = self._fake.manner
        messages = [*enumerate(self._messages, 1)]
        if manner == "fewer":
            messages = messages[:-1]
        elif manner == "twice":
            messages = [messages[0], *messages]
        dates = dates and manner != "no dates"
        for number, (_, identity, size, flags) in messages:
            header = f"Message-ID: {identity}\r\n\r\n"
            told = [] if manner == "no flags" else [f"FLAGS ({flags})"]
            after = f" {told.pop()}" if manner == "flags last" else ""
            told += [] if manner == "no size" else [f"RFC822.SIZE {size}"]
            told += [f'INTERNALDATE "{_date(size % 60, manner)}"'] if dates else []
            told.append(f"BODY[HEADER.FIELDS (MESSAGE-ID X-TUID)] {{{len(header)}}}")
            self.say(f"* {number} FETCH ({' '.join(told)}")
            self.say(f"{header}{after})")


def _date(second: int, manner: str) -> str:
    """When a message arrived, or when a server of this manner says it did."""
    return {
        "own zone": f"04-Mar-2011 23:04:{second:02} -0300",
        "of the copy": "30-Nov-2026 19:18:47 +0000",
        "odd dates": f"2011-03-05T02:04:{second:02}Z",
    }.get(manner, f" 5-Mar-2011 02:04:{second:02} +0000")


def prefixed(folders: Folders, prefix: str = "INBOX.") -> Folders:
    """The same with `prefix` before all names but INBOX."""
    return {name if re.fullmatch("INBOX", name) else prefix + name: messages for name, messages in folders.items()}
