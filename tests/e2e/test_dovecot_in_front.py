# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Dovecot as an LMTP proxy in front of ours, as large sites have it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backend import FakeBackend
from tests.support.client import LmtpClient
from tests.support.proxy import ProxyProcess, config_of
from tests.support.script import Script, say

from .dovecot_proxy import DovecotProxy
from .requirements import missing_for_servers


@pytest.fixture
def directory() -> Iterator[Path]:
    if reason := missing_for_servers():
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="lpe-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_what_it_sends_unasked_does_not_bounce_mail(directory: Path) -> None:
    """`RCPT TO:<alice+x> ORCPT=rfc822;Alice+2Bx@Example.org`, though nobody offered it."""
    script = Script(rcpt_by={"carol": say("450 4.2.1 later"), "dave": say("550 5.1.1 no")})
    with (
        FakeBackend(script) as store,
        ProxyProcess(config_of({"a": store}, {}, fallback_backend="a"), tcp=True) as proxy,
    ):
        assert isinstance(proxy.address, tuple)
        dovecot = DovecotProxy(directory, proxy.address)
        try:
            dovecot.start()
            with LmtpClient(str(dovecot.socket)) as client:
                client.greet()
                people = ["Alice+x@Example.org", "bob", "Carol@x.test", "dave@x.test", "ERIN+a@x.test"]
                outcome = client.deliver("s@x", people)
                codes = [outcome.verdict(position).code for position in range(len(people))]
                client.quit()
        finally:
            dovecot.stop()
        assert codes == [250, 250, 450, 550, 250], dovecot.log()
        (seen,) = store.transactions()
        lines = [recipient.line for recipient in seen.recipients]
        assert lines == [b"RCPT TO:<%b>" % each for each in (b"alice+x", b"bob", b"carol", b"dave", b"erin+a")]
