# SPDX-License-Identifier: GPL-3.0-or-later
"""`lmtp-proxyctl migrate report`: the journal as a report, on the terminal and in a file.

The page has users' names and what commands said, so only its owner may read it, as the journal itself.
"""

import os
import tempfile
import time
from collections.abc import Sequence

from lmtp_proxy.ctl.drain import REFUSED, Failed, Outcome
from lmtp_proxy.ctl.migrate.journal import open_journal
from lmtp_proxy.ctl.migrate.report import Report, read_report
from lmtp_proxy.ctl.migrate.report_text import receipt_lines, report_document, report_lines
from lmtp_proxy.ctl.migrate.status import under_way
from lmtp_proxy.text import safe


def report(journal_path: str, users: Sequence[str] = (), html: str | None = None) -> Outcome:
    """users: whose receipts are wanted; none: the summary. html: where the page is to be written.

    Raises JournalError, and Failed if the page cannot be written, or the journal does not know a user.
    """
    with open_journal(journal_path, read_only=True) as journal:
        runs = journal.runs()
        found = read_report(journal, bool(runs) and under_way(runs[-1]))
    lines = report_lines(found) if not users else _receipts(found, users)
    if html is not None:
        _write(html, found)
        lines += ["", f"written: {safe(html)}"]
    return Outcome(report_document(found, users), lines)


def _receipts(found: Report, users: Sequence[str]) -> list[str]:
    known = {user.user: user for user in found.users}
    if missing := [user for user in users if user not in known]:
        raise Failed(REFUSED, f"the journal has never heard of {', '.join(missing)}")
    lines: list[str] = []
    for user in users:
        lines += [*([""] if lines else []), *receipt_lines(known[user])]
    return lines


def _write(path: str, found: Report) -> None:
    """As a whole or not at all."""
    from lmtp_proxy.ctl.migrate.report_html import report_page

    if os.path.exists(path) and not os.path.isfile(path):
        raise Failed(REFUSED, f"{path}: is no file: the page was not written")
    path = os.path.realpath(path)
    page = report_page(found, time.time())
    new = None
    try:
        handle, new = tempfile.mkstemp(prefix=".report-", dir=os.path.dirname(path) or ".")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(page)
        os.replace(new, path)
    except OSError as error:
        if new is not None and os.path.exists(new):
            os.unlink(new)
        raise Failed(REFUSED, f"{path}: {error.strerror}: the page was not written") from error
