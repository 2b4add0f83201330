# SPDX-License-Identifier: GPL-3.0-or-later
"""A run on a terminal: a bar, a line for each user in hand with what is done for them, and what went wrong so far.

Whoever calls a watcher only changes a few values here; a thread of its own draws them, so that a terminal that takes
nothing (Ctrl-S, a dead connection) holds up nobody. User names and errors are data: no markup, no control characters.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

from lmtp_proxy.ctl.migrate.events import LogWatcher, Summary, Watcher, summary_text
from lmtp_proxy.ctl.migrate.report_words import step_word
from lmtp_proxy.ctl.migrate.states import COPIED, DONE, FAILED, NEEDS_ATTENTION
from lmtp_proxy.ctl.output import cut, some, width
from lmtp_proxy.text import count, natural, safe, span

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_EVERY = 0.25  # seconds between two pictures
_FAREWELL = 2.0  # seconds for the last one
_LINES = 4  # of the screen that are no users: the bar, the lines below it, the cursor
_FOLDED = 3  # lines of what went wrong more than once
_WIDEST = 110  # columns: in a wider line the eye does not find from a name to its step
_OFFLINE_FROM = "block"


def watcher_for(stream: TextIO | None, environment: dict[str, str]) -> Watcher:
    """A live view if `stream` is a terminal that can show one; otherwise a line for each event."""
    if stream is None or not stream.isatty() or environment.get("TERM", "dumb") in ("dumb", "unknown"):
        return LogWatcher(stream)
    try:
        return LiveWatcher(stream)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        plain = LogWatcher(stream)
        plain.note("a line for each event; with rich there is a live view: apt install python3-rich")
        return plain


@dataclass(slots=True)
class _InHand:
    step: str
    since: float
    """When the step began."""
    offline: float | None = None
    """Since when they have no IMAP."""


class LiveWatcher:
    """Raises ModuleNotFoundError where rich is missing."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic, *, draw: bool = True) -> None:
        from rich.console import Console
        from rich.live import Live

        self._clock = clock
        self._lock = threading.Lock()
        self._total = 0
        self._before = 0
        self._began = clock()
        self._ended: dict[str, int] = {DONE: 0, FAILED: 0, NEEDS_ATTENTION: 0}
        self._copied: set[str] = set()
        self._in_hand: dict[str, _InHand] = {}
        self._alike: dict[tuple[str, str], list[str]] = {}
        """State and error, with USER for the user -> those whom it befell, the first of whom has been shown."""
        self._lines: list[tuple[str, str]] = []
        """To be written above the picture, for good: style and text."""
        self._summary: Summary | None = None
        # the size that the terminal had when somebody exported it is not that of now
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        forgiving = cast(TextIO, _Forgiving(stream))
        self._console = Console(file=forgiving, highlight=False, emoji=False, markup=False, _environ=environment)
        self._live = Live(
            console=self._console, auto_refresh=False, get_renderable=self._picture, redirect_stdout=False,
            redirect_stderr=False, vertical_overflow="crop",
        )  # fmt: skip
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="live view", daemon=True) if draw else None

    # --- what the run says -------------------------------------------------------------------------------------------

    def began(self, total: int, already_done: int) -> None:
        with self._lock:
            self._total, self._before, self._began = total, already_done, self._clock()
        if self._thread is not None:
            self._thread.start()

    def user_step(self, user: str, state: str, step: str) -> None:
        now = self._clock()
        with self._lock:
            known = self._in_hand.get(user)
            offline = known.offline if known else None
            if offline is None and step == _OFFLINE_FROM:
                offline = now
            self._in_hand[user] = _InHand(step, now, offline)

    def user_ended(self, user: str, state: str, seconds_offline: float | None, error: str | None) -> None:
        with self._lock:
            self._in_hand.pop(user, None)
            if state == COPIED:  # comes once more, perhaps
                self._copied.add(user)
                return
            self._copied.discard(user)
            self._ended[state] = self._ended.get(state, 0) + 1
            if state != DONE:
                alike = self._alike.setdefault((state, (error or "").replace(user, "USER")), [])
                alike.append(user)
                if len(alike) == 1:
                    text = f"{user}: {_word(state)}{f': {error}' if error else ''}"
                    self._lines.append((_style(state), text))

    def note(self, text: str) -> None:
        if self._thread is not None and not self._thread.is_alive():
            self._write("", text)  # nobody is in hand, and perhaps there is never a picture
            return
        with self._lock:
            self._lines.append(("", text))

    def ended(self, summary: Summary) -> None:
        with self._lock:
            self._summary = summary
            self._in_hand.clear()
            for (state, error), (first, *more) in self._alike.items():
                if more:
                    what = (
                        f"{some(sorted(more, key=natural))}: {_word(state)}, as {first}{f': {error}' if error else ''}"
                    )
                    self._lines.append((_style(state), what))
        self._end.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(_FAREWELL)

    # --- what is seen of it ------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        self._live.start()
        # A run that is killed leaves a terminal with a cursor.
        self._console.show_cursor(True)
        try:
            while not self._end.wait(_EVERY):
                self._show()
            self._show()
        finally:
            self._live.stop()

    def _show(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        for style, text in lines:
            self._write(style, text)
        self._live.refresh()

    def _write(self, style: str, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(f"{time.strftime('%H:%M:%S %z')} {safe(text)}", style=style))

    def _picture(self) -> "RenderableType":
        """All that is drawn, as high and as wide as the screen takes it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        columns, rows = min(_WIDEST, self._console.size.width), self._console.size.height
        with self._lock:
            summary, ended = self._summary, sum(self._ended.values())
            ready = min(self._total, self._before + ended)
            bar = Table.grid(padding=(0, 1))
            bar.add_column()
            bar.add_column(no_wrap=True)
            share = f" {100 * ready // self._total} %" if self._total else ""
            numbers = f"{ready:,}/{self._total:,}{share}"
            picture = ProgressBar(max(1, self._total), ready, max(8, columns - len(numbers) - 2))
            bar.add_row(picture, numbers)
            parts: list[RenderableType] = [bar]
            if summary is not None:
                return Group(*parts, Text(safe(summary_text(summary)), style="bold"))
            parts += [_line(self._so_far(), columns, "bold"), _line(self._to_come(ended), columns)]
            folded = self._folded(columns)
            parts += [*folded, *self._users(columns, max(1, rows - _LINES - len(folded)))]
        return Group(*parts)

    def _so_far(self) -> str:
        numbers = (
            (self._ended[DONE], "done"),
            (len(self._copied), "copied"),
            (self._before, "done before"),
            (self._ended[FAILED], "failed"),
            (
                self._ended[NEEDS_ATTENTION],
                "needs attention" if self._ended[NEEDS_ATTENTION] == 1 else "need attention",
            ),
        )
        return ", ".join(f"{number:,} {what}" for number, what in numbers if number or what == "done")

    def _to_come(self, ended: int) -> str:
        """By what it took so far: the only thing that is known of the users who are left."""
        taken = self._clock() - self._began
        left = self._total - self._before - ended
        if left <= 0 or not ended:
            return f"{span(taken)} so far"
        rest = left * taken / ended
        until = time.strftime("%Y-%m-%d %H:%M %z", time.localtime(time.time() + rest))
        return f"{span(taken)} so far, about {span(max(1.0, rest))} left, until {until}"

    def _folded(self, columns: int) -> "list[Text]":
        """What went wrong in the same way more than once, the most frequent first."""
        often = sorted(self._alike.items(), key=lambda item: -len(item[1]))
        return [
            _line(f"{count(len(users), 'user')} {_word(state)}{f': {error}' if error else ''}", columns, _style(state))
            for (state, error), users in often[:_FOLDED]
            if len(users) > 1
        ]

    def _users(self, columns: int, room: int) -> "list[Text]":
        now = self._clock()
        shown = list(self._in_hand.items())
        more = len(shown) - room
        if more > 0:
            shown = shown[: room - 1]
        lines = []
        for user, at in shown:
            offline = f", offline {span(now - at.offline)}" if at.offline is not None else ""
            doing = f"  {step_word(at.step)} {span(now - at.since)}{offline}"
            name = cut(safe(user), max(8, columns - 2 - width(doing)))
            lines.append(_line(f"  {name}{' ' * max(0, columns - 2 - width(name) - width(doing))}{doing}", columns))
        if more > 0:
            lines.append(_line(f"  and {count(len(self._in_hand) - len(shown), 'user')} more", columns))
        return lines


def _word(state: str) -> str:
    return state.replace("_", " ")


def _style(state: str) -> str:
    return "bold red" if state == NEEDS_ATTENTION else "yellow"


def _line(text: str, columns: int, style: str = "") -> "Text":
    from rich.text import Text

    return Text(cut(safe(text), columns), style=style, no_wrap=True, overflow="crop")


class _Forgiving:
    """A stream whose reader may go away: what cannot be written is not."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
