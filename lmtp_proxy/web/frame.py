# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame of the status page: head, style sheet, the script that refreshes it, and the policy that forbids all else.

One page without any other file. Without JavaScript the browser loads it anew every few seconds. With it what is shown
is replaced, and the page says so when no answer comes any more.
"""

from base64 import b64encode
from hashlib import sha256

from lmtp_proxy.web.markup import STYLE, document

EVERY = 5  # seconds

_STYLE = """
body{margin:0;background:var(--page);font-size:14px;line-height:1.4}
main{max-width:1500px;margin:0 auto;padding:14px 16px 24px;display:grid;gap:12px;grid-template-columns:minmax(0,1fr)}
h1{font-size:18px;margin:0;overflow-wrap:anywhere}h1 span{font-weight:400;color:var(--soft)}
h2{font-size:12px;margin:0 0 8px;text-transform:uppercase;letter-spacing:.05em;color:var(--soft);font-weight:600}
h2 b{color:var(--text);font-weight:600;text-transform:none;letter-spacing:0}
header{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center}
header .facts{margin-left:auto;color:var(--soft);font-size:13px;display:flex;flex-wrap:wrap;gap:2px 14px}
.facts b{color:var(--text);font-weight:600}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:12px 14px;min-width:0}
.tiles{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(168px,1fr))}
.tile{padding:10px 14px 8px;display:flex;flex-direction:column}.tile h2{margin:0}
.tile .big{font-size:24px;font-weight:600;line-height:1.3;white-space:nowrap}
.tile .big small{font-size:13px;font-weight:400;color:var(--soft)}
.tile p{margin:0;color:var(--soft);font-size:12px}
.big.warn{color:var(--warn)}.big.bad{color:var(--bad)}
figure{margin:0;position:relative;padding-top:13px}figcaption{position:absolute;top:0;left:0;line-height:13px;font-size:11px;color:var(--soft);
opacity:.85}.tile figure{margin-top:auto;padding-top:16px}
.tile figcaption{top:3px}
.curve{display:block;width:100%;height:30px}
.curve path{vector-effect:non-scaling-stroke;fill:none}
.curve .base{stroke:var(--rule)}.curve .line{stroke:var(--line);stroke-width:1.5;stroke-linejoin:round}
.curve .area{fill:var(--line);opacity:.14}.curve .line.failed{stroke:var(--bad)}.curve .area.failed{fill:var(--bad)}
th{font-size:12px;font-weight:600;color:var(--soft);text-align:right;padding:0 8px 5px;white-space:nowrap}
td{border-top:1px solid var(--rule);padding:6px 8px;text-align:right;white-space:nowrap;vertical-align:middle}
th:first-child,td:first-child{padding-left:0;text-align:left}th:last-child,td:last-child{padding-right:0}
.list td{padding-top:3px;padding-bottom:3px}.list td.name,.backends td:first-child,.legend li,.facts,h2
{white-space:normal;overflow-wrap:anywhere}.backends td:first-child{min-width:210px}
.left{text-align:left}td small{color:var(--soft);font-size:12px}td.wide{width:26%;min-width:120px}
td.use{min-width:150px}
td.text{white-space:normal;overflow-wrap:anywhere;text-align:left}td svg.bar{margin-top:3px}
.zero{color:var(--soft);opacity:.7}.num-warn{color:var(--warn)}.num-bad{color:var(--bad);font-weight:600}
.where{display:block;color:var(--soft);font-size:12px;overflow-wrap:anywhere;white-space:normal}
.columns{display:grid;gap:12px;grid-template-columns:minmax(0,1fr);align-items:start}
@media(min-width:1000px){.columns{grid-template-columns:minmax(0,7fr) minmax(0,5fr)}}
.column{display:grid;gap:12px;grid-template-columns:minmax(0,1fr)}
.none{color:var(--soft);margin:0}.told{margin:8px 0 0}
footer{color:var(--soft);font-size:12px;display:flex;flex-wrap:wrap;gap:2px 16px}a{color:var(--line)}
#stale{display:none;position:sticky;top:0;z-index:1;background:var(--bad);color:#fff;padding:6px 16px;font-weight:600}
.stale #stale{display:block}.stale main{opacity:.55}
@media(prefers-color-scheme:dark){#stale{color:#111418}}
@media(max-width:1100px){
header .facts{margin-left:0}
.backends thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.backends tr{display:grid;grid-template-columns:repeat(auto-fill,minmax(96px,1fr));gap:6px 10px;padding:10px 0;
border-top:1px solid var(--rule)}
.backends tr:first-child{border-top:0;padding-top:0}
.backends td{display:block;border:0;padding:0;text-align:left}
.backends td::before{content:attr(data-label);display:block;font-size:11px;color:var(--soft)}
.backends td:first-child,.backends td.wide{grid-column:1/-1;width:auto;min-width:0}
.backends td.use{grid-column:span 2;min-width:0}.backends td:first-child::before{content:none}
}
@media(max-width:520px){main{padding:10px 10px 20px;gap:10px}.card{padding:10px 11px}.list{font-size:12.5px}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}
.tile:last-child:nth-child(odd){grid-column:1/-1}.tile .big{font-size:21px}.narrow-off{display:none}
th,td{padding-left:5px;padding-right:5px}}
"""

_SCRIPT = f"""
(function () {{
  "use strict";
  var answered = Date.now();
  function refresh() {{
    if (document.hidden) return;
    fetch(location.pathname, {{cache: "no-store", signal: AbortSignal.timeout({EVERY * 1000})}})
      .then(function (answer) {{
        if (!/^text\\/html/.test(answer.headers.get("Content-Type"))) throw answer;
        return answer.text();
      }})
      .then(function (text) {{
        var other = new DOMParser().parseFromString(text, "text/html");
        document.querySelector("main").replaceWith(document.adoptNode(other.querySelector("main")));
        document.title = other.title;
        document.querySelector("link[rel=icon]").href = other.querySelector("link[rel=icon]").href;
        document.body.className = "";
        answered = Date.now();
      }})
      .catch(function () {{
        document.getElementById("stale").textContent =
          "No answer from lmtp-proxy for " + Math.round((Date.now() - answered) / 1000) + " s. This is how it was.";
        document.body.className = "stale";
      }});
  }}
  setInterval(refresh, {EVERY * 1000});
  document.addEventListener("visibilitychange", refresh);
}})();
"""

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='8' cy='8' r='7' fill='%23{}'/%3E%3C/svg%3E"
)
_ICONS = {"good": "2fa567", "warn": "d9962b", "bad": "d63b3b"}


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


HEADERS = (
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src {_hash(STYLE + _STYLE)}; script-src {_hash(_SCRIPT)}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


def framed(title: str, state: str, content: str) -> str:
    """The whole page.

    Args:
        title: text.
        state: good, warn or bad.
        content: HTML.
    """
    head = (
        f'<noscript><meta http-equiv="refresh" content="{EVERY}"></noscript>'
        f'<link rel="icon" href="{_ICON.format(_ICONS[state])}">'
    )
    body = f'<div id="stale" role="status"></div>\n<main>\n{content}\n</main>\n<script>{_SCRIPT}</script>'
    return document(title, _STYLE, body, head)
