# SPDX-License-Identifier: GPL-3.0-or-later
"""What docs/other-mtas.md gives to be copied is what tests/e2e/test_other_mtas.py runs, but for addresses."""

import re

import pytest

from tests.docs.pages import section, text_of

OWN = {"socket", "port", "message_linelength_limit"}
"""Settings of Exim whose values are those of the site, or that the mail of the tests does not need."""


def lines(title: str) -> list[str]:
    return [line.strip() for line in re.findall(r"(?m)^ {4,}(.*)$", section("docs/other-mtas.md", title))]


def test_exim() -> None:
    run = text_of("tests/e2e/exim.py")
    settings = [line for line in lines("Exim") if line != "proxy:"]
    assert len(settings) == 11
    for line in settings:
        assert line in run or line.partition(" = ")[0] in OWN, line


def test_sendmail() -> None:
    run = " ".join(text_of("tests/e2e/sendmail.py").replace(r"\t", " ").replace(r"\\", "\\").split())
    mailer, _, address = " ".join(" ".join(lines("Sendmail")).split()).rpartition(" A=")
    assert mailer.startswith("Mlmtpproxy, P=[IPC], F=") and f"{mailer} A={{to}}" in run
    assert address.startswith("FILE /") and 'f"FILE {' in run


def test_opensmtpd() -> None:
    action, _ = lines("OpenSMTPD")
    run = re.findall(r'(?m)^action "proxy" .*$', text_of("tests/e2e/opensmtpd.py"))
    assert [re.sub(r'"/[^"]*"|<\w+>', "...", action)] == [re.sub(r'"\{to\}"|<\w+>', "...", line) for line in run]


@pytest.mark.parametrize("name", ["Exim", "Sendmail", "OpenSMTPD"])
def test_who_is_said_to_be_run_is_run(name: str) -> None:
    assert name in text_of("tests/e2e/test_other_mtas.py").partition('"""')[2].partition('"""')[0]
