# SPDX-License-Identifier: GPL-3.0-or-later
"""What a certificate says, beside what openssl says of it; and whatever else a peer may send in its place."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_proxy.loop.certificate import Certificate
from tests.support.certificates import DAY, Authority, Signed


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def signed(authority: Authority) -> Signed:
    return authority.sign("store.example.org", "192.0.2.1", ends=10)


@pytest.mark.parametrize("kind", ["ec", "rsa:2048"])
def test_it_says_whose_it_is_and_until_when(authority: Authority, kind: str) -> None:
    signed = authority.sign("store.example.org", file=kind, ends=10, kind=kind)
    found = Certificate.read(signed.der)
    assert (found.subject, found.issuer) == ("CN=store.example.org", "O=lmtp-proxy tests, CN=Test CA")
    assert abs(found.begins - (time.time() - DAY)) < 60 and abs(found.ends - (time.time() + 10 * DAY)) < 60
    assert (found.digest, found.key_digest) == (signed.digest, signed.key_digest)


def test_a_date_beyond_2049_is_written_in_another_way(authority: Authority) -> None:
    found = Certificate.read(authority.sign("far", ends=365.25 * 60).der)
    assert found.ends > time.time() + 365 * 59 * DAY


def test_names_of_any_kind(authority: Authority, tmp_path: Path) -> None:
    name = "gemäß/emailAddress=a@b/OU=x/2.5.4.97=VAT"
    found = Certificate.read(Authority(tmp_path, name).ca.der)
    assert found.subject == found.issuer == "O=lmtp-proxy tests, CN=gemäß, 1.2.840.113549.1.9.1=a@b, OU=x, 2.5.4.97=VAT"


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 5, 20, 100, 200])
def test_what_is_cut_off_is_none(signed: Signed, cut: int) -> None:
    with pytest.raises(ValueError, match="no certificate"):
        Certificate.read(signed.der[:cut])


@given(st.data())
def test_whatever_stands_in_it_there_is_an_answer_or_a_value_error(signed: Signed, data: st.DataObject) -> None:
    octets = bytearray(signed.der)
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    try:
        Certificate.read(bytes(octets))
    except ValueError:
        pass
