# SPDX-License-Identifier: GPL-3.0-or-later
"""What the status page and the report of a migration share of HTML: escaping, the colours, the frame of a document.

Pure, as `lmtp-proxyctl migrate report` uses it, too. Foreign text goes through `escape` or `escape_lines`, always.
"""

from html import escape as _escape

from lmtp_proxy.text import safe

LIGHT = """--page:#f4f5f7;--card:#fff;--text:#1b1f24;--soft:#5c6570;--rule:#dfe3e8;
--good:#146c3e;--warn:#8f5100;--bad:#b92525;--goodbg:#e3f4ea;--warnbg:#fdf0dc;--badbg:#fde5e5;--flat:#e9ecf0;
--line:#2563c9;--k0:#8a94a3;--k1:#2f6fde;--k2:#12948a;--k3:#8b5bd6;--k4:#c4622d;--k5:#3d8f3d;--k6:#b0428a;--k7:#7c7a2b;
--reject:#d9a12b;--hold:#e2c178;"""
"""The colours on a light ground, as variables of CSS: what they are for, and k0 to k7 for parts that need one each."""
_DARK = """--page:#111418;--card:#1a1e24;--text:#e4e8ed;--soft:#98a2ae;--rule:#2d333b;
--good:#5ccf92;--warn:#f0b45c;--bad:#ff7b7b;--goodbg:#143324;--warnbg:#3a2b12;--badbg:#431d1f;--flat:#262c34;
--line:#6ea3ff;--k0:#6d7784;--k1:#5b93f5;--k2:#35b8ad;--k3:#a985ec;--k4:#e0885a;--k5:#67b567;--k6:#d572b2;--k7:#aba852;
--reject:#d9a12b;--hold:#8f7a45;"""

KINDS = 8
"""How many colours there are for parts."""

STYLE = f"""
:root{{color-scheme:light dark;{LIGHT}}}
@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{color:var(--text);font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",
"Noto Sans",Arial,sans-serif;font-variant-numeric:tabular-nums}}
table{{border-collapse:collapse;width:100%}}
.pill{{display:inline-block;border-radius:10px;padding:0 9px;font-size:12px;line-height:20px;font-weight:600;
background:var(--flat);color:var(--soft);white-space:nowrap}}
.pill.good{{background:var(--goodbg);color:var(--good)}}.pill.warn{{background:var(--warnbg);color:var(--warn)}}
.pill.bad{{background:var(--badbg);color:var(--bad)}}
.note{{border-left:3px solid var(--good);background:var(--goodbg);border-radius:4px;padding:6px 10px;margin:0;
overflow-wrap:anywhere}}.note.warn{{border-color:var(--warn);background:var(--warnbg)}}
.note.bad{{border-color:var(--bad);background:var(--badbg)}}
svg.bar{{display:block;width:100%;height:18px;border-radius:4px}}svg.bar.thin{{height:6px}}
rect.empty{{fill:var(--flat)}}svg.key{{width:10px;height:10px;margin-right:6px}}
{"".join(f"rect.k{kind}{{fill:var(--k{kind})}}" for kind in range(KINDS))}
rect.reject{{fill:var(--reject)}}rect.hold{{fill:var(--hold)}}rect.bad{{fill:var(--bad)}}
.legend{{display:flex;flex-wrap:wrap;gap:4px 18px;margin:8px 0 0;padding:0;list-style:none;overflow-wrap:anywhere}}
.legend span{{color:var(--soft);white-space:nowrap}}
"""
"""Of the colours, and of the pieces that both pages have."""


def escape(text: object) -> str:
    """One line of foreign text, as it may stand in text and in an attribute."""
    return _escape(safe(str(text)), quote=True)


def escape_lines(text: str) -> str:
    """Foreign text of several lines."""
    return "\n".join(escape(line.expandtabs()) for line in text.splitlines())


def document(title: str, style: str, body: str, head: str = "") -> str:
    """A whole document.

    Args:
        title: foreign text.
        style: beside STYLE.
        body, head: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{head}<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>{body}</body></html>\n"
    )
