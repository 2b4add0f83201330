# SPDX-License-Identifier: GPL-3.0-or-later
"""A small, complete LMTP server (RFC 2033) that keeps its mail in one Maildir per user.

It stands in for Cyrus or Dovecot in the demo, and by hand: `python -m lmtp_proxy.demo.store --socket S --maildir D`.
Standard library only, one thread per connection. It may not know the proxy, nor share code with it: a mistake in
the proxy's idea of LMTP must not be repeated, and so hidden, on this side.
"""

import argparse
import contextlib
import itertools
import os
import re
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path

MAX_COMMAND = 2048  # octets with CRLF; RFC 5321 4.5.3.1.4 asks for 512, extensions for more
CHUNK = 65536  # octets read at once from a body line of any length
IDLE = 300.0  # seconds, RFC 5321 4.5.3.2.7
CAPABILITIES = ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES")

_PATH = re.compile(rb"(FROM|TO):<([^<>\r\n]*)>((?: [^ ]+)*)\Z", re.IGNORECASE)
_PARAMETER = re.compile(rb"(?:SIZE=(\d{1,20})|BODY=(?:7BIT|8BITMIME))\Z", re.IGNORECASE)
_USER = re.compile(r"[a-z0-9_][a-z0-9._=-]{0,99}\Z")  # what may become a directory's name
_HOST = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
_sequence = itertools.count(1)


def user_of(address: bytes) -> str | None:
    """The mailbox that an address belongs to: its local part in lower case, without quotes and +detail.

    None if it cannot be one.
    """
    local = address.rpartition(b"@")[0] if b"@" in address else address
    if len(local) > 1 and local.startswith(b'"') and local.endswith(b'"'):
        local = local[1:-1]
    user = local.decode("ascii", "replace").lower().partition("+")[0]
    return user if _USER.match(user) else None


def deliver(maildir: Path, parts: Iterable[bytes]) -> Path:
    """Add one message to a Maildir: written in tmp/, synced, renamed into new/, and on disk when this returns.

    Raises OSError.
    """
    for folder in ("tmp", "new", "cur"):
        (maildir / folder).mkdir(parents=True, exist_ok=True)
    now = time.time()
    name = f"{int(now)}.M{int(now % 1 * 1e6):06d}P{os.getpid()}Q{next(_sequence)}.{_HOST}"
    draft, final = maildir / "tmp" / name, maildir / "new" / name
    try:
        with draft.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(final)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    folder_fd = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)
    return final


class _Conversation(socketserver.StreamRequestHandler):
    """One client's connection. Commands may come pipelined; each reply goes out as soon as it is known."""

    server: "Store"
    timeout = IDLE
    sender: bytes | None
    recipients: list[tuple[bytes, str]]

    def setup(self) -> None:
        super().setup()
        if self.server.address_family == socket.AF_INET:  # the replies of a pipelined group are several small writes
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handle(self) -> None:
        self.sender, self.recipients = None, []
        # A client that is gone is none of our business: a message without its final dot was never written.
        with contextlib.suppress(ConnectionError):
            try:
                self.converse()
            except TimeoutError:
                self.reply("421 4.4.2 Idle for too long")

    def converse(self) -> None:
        verbs = {b"LHLO": self.lhlo, b"MAIL": self.mail, b"RCPT": self.rcpt, b"DATA": self.data, b"RSET": self.rset}
        fixed = {b"NOOP": "250 2.0.0 Ok", b"VRFY": "252 2.1.5 Try and see"}
        self.reply(f"220 {_HOST} LMTP {self.server.name} ready")
        while line := self.rfile.readline(MAX_COMMAND + 1):
            if not line.endswith(b"\n"):
                return self.reply("500 5.5.2 Line too long")
            verb, _, argument = line.rstrip(b"\r\n").partition(b" ")
            verb = verb.upper()
            if verb == b"QUIT":
                return self.reply("221 2.0.0 Bye")
            if verb in verbs:
                verbs[verb](argument)
            else:
                self.reply(fixed.get(verb, "500 5.5.1 Unknown command"))
        return None

    def reply(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode("utf-8", "replace"))

    def lhlo(self, argument: bytes) -> None:
        self.sender, self.recipients = None, []
        self.reply(f"250-{_HOST}", *(f"250-{offer}" for offer in CAPABILITIES), f"250 SIZE {self.server.max_size}")

    def mail(self, argument: bytes) -> None:
        path = _PATH.match(argument)
        if self.sender is not None:
            self.reply("503 5.5.1 Nested MAIL")
        elif path is None or path[1].upper() != b"FROM":
            self.reply("501 5.5.4 Syntax: MAIL FROM:<address>")
        else:
            for parameter in path[3].split():
                known = _PARAMETER.match(parameter)
                if known is None:
                    return self.reply("555 5.5.4 Unsupported parameter")
                if known[1] and int(known[1]) > self.server.max_size:
                    return self.reply("552 5.3.4 Message too big")
            self.sender = path[2]
            self.reply("250 2.1.0 Ok")
        return None

    def rcpt(self, argument: bytes) -> None:
        path = _PATH.match(argument)
        if self.sender is None:
            self.reply("503 5.5.1 MAIL first")
        elif path is None or path[1].upper() != b"TO" or not path[2]:
            self.reply("501 5.5.4 Syntax: RCPT TO:<address>")
        elif path[3]:
            self.reply("555 5.5.4 Unsupported parameter")
        else:
            user = user_of(path[2])
            if user is None or (self.server.users is not None and user not in self.server.users):
                self.reply("550 5.1.1 No such user here")
            else:
                self.recipients.append((path[2], user))
                self.reply("250 2.1.5 Ok")

    def data(self, argument: bytes) -> None:
        if not self.recipients:
            return self.reply("503 5.5.1 No valid recipients")
        self.reply("354 End data with <CR><LF>.<CR><LF>")
        body = self.body()
        for address, user in self.recipients:
            if body is None:
                self.reply("552 5.3.4 Message too big")
                continue
            trace = b"Return-Path: <%s>\r\nDelivered-To: %s\r\n" % (self.sender, address)
            try:
                deliver(self.server.maildir / user, [trace, *body])
            except OSError as error:
                self.reply(f"451 4.3.0 Cannot write: {error.strerror}")
            else:
                self.reply(f"250 2.1.5 {user} saved in {self.server.name}")
        self.sender, self.recipients = None, []
        return None

    def body(self) -> list[bytes] | None:
        """The message without dot-stuffing, or None if it is over the limit. It is read to its end in any case.

        Only CRLF.CRLF ends it, and only a dot after CRLF is stuffing: a bare LF is data like any other.
        """
        chunks: list[bytes] = []
        size, last_two = 0, b"\r\n"
        while True:
            chunk = self.rfile.readline(CHUNK)
            if not chunk:
                raise ConnectionError("closed in the message")
            starts_line = last_two == b"\r\n"
            last_two = (last_two + chunk)[-2:]
            if starts_line:
                if chunk == b".\r\n":
                    return None if size > self.server.max_size else chunks
                chunk = chunk.removeprefix(b".")
            size += len(chunk)
            if size > self.server.max_size:
                chunks.clear()
            else:
                chunks.append(chunk)

    def rset(self, argument: bytes) -> None:
        self.sender, self.recipients = None, []
        self.reply("250 2.0.0 Ok")


class Store(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A running store, listening from construction on; `with Store(...)` serves until the block ends.

    Args:
        address: a unix socket's path, or (host, port) with port 0 for any free one: see `server_address`.
        users: the names of the mailboxes there are; None makes a mailbox for whoever gets mail.
        max_size: of a message, in octets.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, name: str, address: str | tuple[str, int], maildir: Path,
                 users: Collection[str] | None = None, max_size: int = 50_000_000) -> None:  # fmt: skip
        self.name, self.maildir, self.users, self.max_size = name, maildir, users, max_size
        self.address_family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        super().__init__(address, _Conversation)  # type: ignore[arg-type]
        self.socket_path = Path(address) if isinstance(address, str) else None

    def server_close(self) -> None:
        super().server_close()
        if self.socket_path is not None:
            self.socket_path.unlink(missing_ok=True)

    def messages(self, user: str) -> list[Path]:
        """The files of a user's messages, in the order they came."""
        return sorted((self.maildir / user / "new").glob("*"), key=lambda path: path.stat().st_mtime_ns)

    def __enter__(self) -> "Store":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lmtp_proxy.demo.store", description="A small LMTP store.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", metavar="PATH", help="listen on this unix socket")
    where.add_argument("--port", type=int, help="listen on this TCP port of 127.0.0.1")
    parser.add_argument("--maildir", metavar="DIR", type=Path, required=True, help="DIR/USER/{tmp,new,cur}")
    parser.add_argument("--name", default="store", help="shown in the greeting and in replies")
    parser.add_argument("--user", action="append", metavar="NAME", help="a mailbox there is; without: every name")
    parser.add_argument("--max-size", type=int, default=50_000_000, metavar="OCTETS")
    options = parser.parse_args()
    address = options.socket or ("127.0.0.1", options.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        store = Store(options.name, address, options.maildir, options.user, options.max_size)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: {address}: {error.strerror}\n")
    with store:
        print(f"ready: {options.name} on {store.server_address}, mail in {options.maildir}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
