# SPDX-License-Identifier: GPL-3.0-or-later
"""The standard streams of a command: closed, a pipe that nobody reads any more, a full disk. And what else it inherits.

What a command has done is done, and its exit status says so, whoever reads what it prints. Only where the output was
wanted and is not there (a full disk) that is an error of its own.
"""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TextIO

LOST_OUTPUT = 74  # EX_IOERR of sysexits.h
_STANDARD = range(3)


def put_right() -> None:
    """First thing in a command.

    A standard descriptor that is closed is /dev/null from now on: else the next file to be opened, a socket say, gets
    its number, and whatever is printed. `sys.stdin` and so on stay None, as that says what they were.

    A signal that is blocked would not stop us, and what we start would inherit that. With SIGCHLD ignored nobody learns
    how a child has ended: Python takes each for a success.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) in _STANDARD:
        os.set_inheritable(handle, True)
    os.close(handle)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def say(stream: TextIO | None, lines: Sequence[str]) -> str | None:
    """Lines go out at once, or never. Returns why they could not be written; None too where nobody reads the stream.

    stream: None if it was closed when Python began.
    """
    if stream is None or not lines:
        return None
    with suppress(AttributeError, ValueError):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return _out(stream, lambda: print(*lines, sep="\n", file=stream))


def settle(*streams: TextIO | None) -> None:
    """Nothing is left in the buffers, so that Python's own end has nothing to complain of (exit status 120)."""
    for stream in streams:
        if stream is not None:
            _out(stream, lambda: None)


def _out(stream: TextIO, write: Callable[[], object]) -> str | None:
    try:
        write()
        stream.flush()
    except OSError as error:
        _to_nowhere(stream)
        return None if _nobody_reads(stream, error) else error.strerror or str(error)
    except ValueError:  # somebody has closed it
        return None
    except KeyboardInterrupt:  # the reader takes nothing, and nobody wants to wait for that a second time
        _to_nowhere(stream)
        raise
    return None


def _nobody_reads(stream: TextIO, error: OSError) -> bool:
    """A pipe or a socket without a reader, a terminal that is gone."""
    if isinstance(error, BrokenPipeError | ConnectionResetError):
        return True
    return error.errno == errno.EIO and stream.isatty()


def _to_nowhere(stream: TextIO) -> None:
    """A buffer keeps what it could not write, and tries again whenever it is flushed."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.dup2(nowhere, stream.fileno())
            stream.flush()
        finally:
            os.close(nowhere)


class ProgramParser(argparse.ArgumentParser):
    """Its help and its version go out as all else does."""

    def _print_message(self, message: str, file: Any = None) -> None:
        stream = sys.stderr if file is None else file
        lost = say(stream, [message.removesuffix("\n")] if message else [])
        if lost is not None and stream is sys.stdout:
            sys.exit(say_lost(self.prog, lost))


def say_lost(program: str, why: str) -> int:
    """The one line about output that is lost; returns the exit status for it."""
    say(sys.stderr, [f"{program.partition(' ')[0]}: the output could not be written: {why}"])
    return LOST_OUTPUT
