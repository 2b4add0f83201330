# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/reference/ made from the man pages: mdoc(7) as Markdown, as far as these pages use it.

`python -m tests.docs.reference` writes the pages anew; tests/docs/test_reference.py says when that has to be done.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

DOCS = ROOT / "docs"
PAGES = ("lmtp-proxy.8", "lmtp-proxyctl.8", "lmtp-proxy.yml.5", "lmtp-proxy-migrate.5")
_CODE = frozenset({"Cm", "Fl", "Li", "Ql", "Pa", "Dv", "Ev"})
_AROUND = {"Dq": ('"', '"'), "Pq": ("(", ")"), "Bq": ("\\[", "]"), "Op": ("\\[", "]")}
_OPENS = {"Oo": "\\[", "Po": "("}
_CLOSES = {"Oc": "]", "Pc": ")"}
_STYLES = _CODE | {"Ar", "Sy", "Em", "Sx", "Nm", "Xr", "No"}
_CALLED = _STYLES | _AROUND.keys() | _OPENS.keys() | _CLOSES.keys() | {"Ns"}
_PASSED_OVER = frozenset({"Dd", "Dt", "Os"})
_DELIMITERS = frozenset(",.;:)|")
_ESCAPES = {r"\(dq": '"', r"\(ss": "ß", r"\(:u": "ü", r"\&": "", r"\(em": "—"}
_JOINED = "\0"
"""Between two pieces with no space between them."""


def _text(source: str) -> str:
    return re.sub(r"\\(?:\(..|&)", lambda match: _ESCAPES[match[0]], source)


def _plain(text: str) -> str:
    return re.sub(r"([\\*_<`\[])", r"\\\1", _text(text))


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.quotes, lexer.escape = True, "", '"', ""
    return list(lexer)


class _Page:
    """One man page on its way to Markdown. Raises ValueError for a macro that it does not know."""

    def __init__(self, name: str) -> None:
        source = (DOCS / name).read_text("utf-8")
        self._name, _, number = name.rpartition(".")
        self._lines = [line for line in source.splitlines() if not line.startswith('.\\"')]
        self._out = [f"<!-- made from docs/{name} by `python -m tests.docs.reference`, not by hand -->", ""]
        self._out += [f"# {self._name}({number})", ""]
        self._paragraph: list[str] = []
        self._lists: list[str] = []
        """What an item of each list that is open begins with; empty for a list of tags."""
        self._item = ""
        """What stands in front of the paragraph that is being gathered."""

    def markdown(self) -> str:
        """The whole page."""
        lines = iter(self._lines)
        for line in lines:
            if not line.startswith("."):
                self._paragraph.append(_plain(line))
                continue
            macro, *words = _words(line[1:])
            if macro in ("Sh", "Ss"):
                self._flush()
                self._out += [f"{'##' if macro == 'Sh' else '###'} {' '.join(words)}", ""]
            elif macro == "Bd":
                self._block(lines)
            elif macro == "Dl":
                self._literal([_text(" ".join(words))])
            elif macro == "Bl":
                self._flush()
                self._lists.append({"-bullet": "- ", "-enum": "1. "}.get(words[0], ""))
            elif macro == "El":
                self._flush()
                self._lists.pop()
            elif macro == "It":
                self._flush()
                tag = self._joined([self._inline(words)])
                self._item = self._lists[-1] or f"- {tag}"
            elif macro == "Pp":
                self._flush()
            elif macro == "Nd":
                self._paragraph.append("– " + _plain(" ".join(words)))
            elif macro not in _PASSED_OVER:
                self._paragraph.append(self._inline([macro, *words]))
        self._flush()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._out)).rstrip() + "\n"

    def _margin(self, levels: int) -> str:
        return "".join(" " * (len(item) or 2) for item in self._lists[:levels])

    def _flush(self) -> None:
        """The paragraph that was gathered, behind the tag of its item if it has one."""
        text = self._joined(self._paragraph)
        self._paragraph = []
        if self._item:
            own = bool(self._lists) and bool(self._lists[-1])
            first = self._item + text if own else f"{self._item}: {text}" if text else self._item
            self._out += [self._margin(len(self._lists) - 1) + first, ""]
            self._item = ""
        elif text:
            self._out += [self._margin(len(self._lists)) + text, ""]

    def _block(self, lines: Iterator[str]) -> None:
        inside = []
        for line in lines:
            if line == ".Ed":
                break
            inside.append(_text(line))
        self._literal(inside)

    def _literal(self, inside: list[str]) -> None:
        self._flush()
        margin = self._margin(len(self._lists))
        self._out += [*(margin + line for line in ("```", *inside, "```")), ""]

    @staticmethod
    def _joined(pieces: list[str]) -> str:
        text = re.sub(rf" ?{_JOINED} ?", "", " ".join(pieces))
        text = re.sub(r" +([,.;:)](?:\s|$))", r"\1", text)
        return text.strip()

    def _inline(self, words: list[str]) -> str:
        """A line of macros, or what follows one."""
        pieces: list[str] = []
        style, held = "No", list[str]()

        def end() -> None:
            if held or style == "Nm":
                pieces.append(self._styled(style, held))
            held.clear()

        position = 0
        while position < len(words):
            word = words[position]
            position += 1
            if word not in _CALLED:
                if word in _DELIMITERS:
                    end()
                    pieces.append(word if word == "|" else _JOINED + word)
                    style = "No" if style == "Nm" else style
                else:
                    held.append(word)
                continue
            end()
            style = word if word in _STYLES else "No"
            if word in _AROUND:
                rest = words[position:]
                after = list[str]()
                while rest and rest[-1] in _DELIMITERS - {"|"}:
                    after.insert(0, rest.pop())
                left, right = _AROUND[word]
                pieces.append(left + self._inline(rest) + right + "".join(after))
                return " ".join(pieces)
            if word in _OPENS:
                pieces.append(_OPENS[word] + _JOINED)
            elif word in _CLOSES:
                pieces.append(_JOINED + _CLOSES[word])
            elif word == "Ns":
                pieces.append(_JOINED)
            elif word not in _STYLES:
                raise ValueError(f"docs/{self._name}: .{word} is not known to tests/docs/reference.py")
        if words and not pieces and words[0] not in _CALLED and words[0][0].isupper() and len(words[0]) == 2:
            raise ValueError(f"docs/{self._name}: .{words[0]} is not known to tests/docs/reference.py")
        end()
        return " ".join(pieces)

    def _page_with(self, title: str) -> str:
        """The page that has such a section, empty if it is this one: `.Sx` may mean one of a page named behind it."""
        having = [
            name for name in PAGES if re.search(rf"(?m)^\.S[hs] {re.escape(title)}$", (DOCS / name).read_text("utf-8"))
        ]
        if not having:
            raise ValueError(f"docs/{self._name}: no page has a section {title}")
        return "" if any(name.rpartition(".")[0] == self._name for name in having) else f"{having[0]}.md"

    def _styled(self, style: str, words: list[str]) -> str:
        text = " ".join(words)
        if style == "Fl":
            text = " ".join(f"-{word}" for word in words)
        if style in _CODE:
            return f"`{_text(text)}`"
        if style == "Xr":
            target = ".".join(words)
            shown = f"{words[0]}({words[1]})"
            return f"[{shown}]({target}.md)" if target in PAGES else shown
        if style == "Sx":
            return f"[{text}]({self._page_with(text)}#{text.lower().replace(' ', '-')})"
        if style == "Nm":
            return f"**{text or self._name}**"
        marks = {"Ar": "*", "Em": "*", "Sy": "**"}.get(style, "")
        return f"{marks}{_plain(text)}{marks}"


def made(name: str) -> str:
    """The man page docs/`name` as Markdown."""
    return _Page(name).markdown()


def path_of(name: str) -> Path:
    """Where that is kept."""
    return DOCS / "reference" / f"{name}.md"


def main() -> None:
    for name in PAGES:
        path_of(name).write_text(made(name), "utf-8")


if __name__ == "__main__":
    main()
