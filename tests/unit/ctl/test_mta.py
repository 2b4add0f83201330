# SPDX-License-Identifier: GPL-3.0-or-later
"""What is run for each MTA, and its listings, as the real programs wrote them; scripts say them here."""

from pathlib import Path

import pytest

from lmtp_proxy.ctl.mta import Mta, Queued, mta_called

EXIM = """\
 0m   299 1xYAbh-0000Pm-2L <sender@example.test>
          parked+d@example.test
        D other@example.test

25h  2.9K 1xYAbh-0000Ps-2O <> (root) *** frozen ***
          bob@example.test
          carol@example.test

 4d     ? 1xYAbh-0000Zz-2O  spool format error: size=0 ***
          of@no.mail

"""
SENDMAIL = """\
\t\t/var/spool/mqueue (2 requests)
-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------
6AUNGaXp001877*      17 Mon Nov 30 23:16 sender@example.test
\t\t\t\t\t parked@example.test
6AUNGaWE001869       17 Mon Nov 30 23:16 <sender@example.test>
                 (Deferred: 450 4.2.1 Mailbox is being moved, try again later)
\t\t\t\t\t <parked+d@example.test>
\t\t\t\t\t other@example.test
\t\tTotal requests: 2
"""
OPENSMTPD = """\
6e29ce4784837467|inet4|mda||sender@example.test|parked@example.test|parked@example.test|1796080599|1796080599|0|3|\
pending|87|"mail.lmtp: LMTP server error: 450 4.2.1 Mailbox | moved"
77e9a58a75e15d2e|inet4|mda||sender@example.test|parked+d@example.test|x|1796080599|1796080599|0|2|inflight|36|
"""


def listed(tmp_path: Path, name: str, text: str, status: int = 0) -> dict[str, Queued] | None:
    (tmp_path / "text").write_text(text)
    script = tmp_path / "script"
    script.write_text(f'#!/bin/sh\ncat "{tmp_path}/text"; exit {status}\n')
    script.chmod(0o755)
    return mta_called(name, (str(script),)).listed()


def test_what_is_run() -> None:
    assert mta_called("postfix").attempt("4fX") == ("postqueue", "-i", "4fX")
    assert mta_called("exim").attempt("1xY-2L-0") == ("exim4", "-M", "1xY-2L-0")
    assert mta_called("sendmail", ("sendmail", "-Am")).attempt("6AU") == ("sendmail", "-Am", "-qI6AU")
    assert mta_called("opensmtpd").attempt("6e29") == ("smtpctl", "schedule", "6e29")
    assert mta_called("opensmtpd").listing == ("smtpctl", "show", "queue")
    with pytest.raises(ValueError, match="must be postfix, exim, sendmail, opensmtpd or an argument list, not 'qmail'"):
        mta_called("qmail")


def test_a_command_of_the_site() -> None:
    own = Mta("own", ("r", "{user}", "to={address}", "{{user}}"), "example.org")
    assert own.attempt("{address}") == ("r", "{address}", "to={address}@example.org", "{user}")
    assert own.attempt("a@b") == ("r", "a@b", "to=a@b", "{user}")
    assert own.listed() is None


def test_listing_of_exim(tmp_path: Path) -> None:
    assert listed(tmp_path, "exim", EXIM) == {
        "1xYAbh-0000Pm-2L": Queued("deferred", (("parked+d@example.test", ""),)),
        "1xYAbh-0000Ps-2O": Queued("deferred", (("bob@example.test", ""), ("carol@example.test", ""))),
    }, "what has no sender cannot be read, and is none of theirs"
    assert listed(tmp_path, "exim", "") == {}


def test_listing_of_sendmail(tmp_path: Path) -> None:
    why = "Deferred: 450 4.2.1 Mailbox is being moved, try again later"
    assert listed(tmp_path, "sendmail", SENDMAIL) == {
        "6AUNGaXp001877": Queued("active", (("parked@example.test", ""),)),
        "6AUNGaWE001869": Queued("deferred", (("parked+d@example.test", why), ("other@example.test", why))),
    }
    assert listed(tmp_path, "sendmail", "/var/spool/mqueue is empty\n\t\tTotal requests: 0\n") == {}
    assert listed(tmp_path, "sendmail", "sendmail: will not run\n") is None


def test_listing_of_opensmtpd(tmp_path: Path) -> None:
    assert listed(tmp_path, "opensmtpd", OPENSMTPD) == {
        "6e29ce4784837467": Queued("deferred", (("parked@example.test", "450 4.2.1 Mailbox | moved"),)),
        "77e9a58a75e15d2e": Queued("active", (("parked+d@example.test", ""),)),
    }
    assert listed(tmp_path, "opensmtpd", "") == {}
    assert listed(tmp_path, "opensmtpd", "smtpctl: what?\n") is None


@pytest.mark.parametrize("name", ["exim", "sendmail", "opensmtpd"])
def test_what_cannot_be_listed(tmp_path: Path, name: str) -> None:
    assert listed(tmp_path, name, "", 1) is None
    assert mta_called(name, (str(tmp_path / "none"),)).listed() is None
