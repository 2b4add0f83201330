# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys of a backend that are about TLS: which may stand together, and what is wrong with the files."""

import pickle
from pathlib import Path

import pytest

from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.values import Backend, ConfigError
from tests.support.certificates import Authority, Signed, openssl

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Signed:
    return authority.sign("proxy", client=True)


class Written:
    """A configuration with one backend, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "x.yml"

    def load(self, *lines: str, address: str = "{host: store.example.org, port: 24}") -> tuple[Backend, list[str]]:
        """The backend, and the notes on it."""
        inside = "\n".join(f"    {line}" for line in (*address.strip("{}").split(", "), *lines))
        self.path.write_text(f"config:\n  socket: /s\nbackends:\n  b:\n{inside}\nusers:\n  u: b\n", "utf-8")
        config = load_config(str(self.path))
        return config.backends["b"], [note.partition("backends.b.")[2] for note in config.notes]

    def errors(self, *lines: str, address: str = "{host: store.example.org, port: 24}") -> list[str]:
        with pytest.raises(ConfigError) as raised:
            self.load(*lines, address=address)
        return [error.partition("backends.b.")[2] for error in raised.value.errors]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def test_without_a_key_there_is_no_tls_and_with_one_it_is_verified(written: Written) -> None:
    assert written.load()[0].tls == "no"
    backend, notes = written.load("tls: STARTTLS")
    assert (backend.tls, backend.tls_verify, backend.tls_ca, backend.tls_fingerprint) == ("starttls", True, None, None)
    assert notes == []
    assert written.load("tls: implicit")[0].tls == "implicit"


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["tls: yes"], ['tls: must be no, starttls or implicit, not "yes"']),
        (["tls:"], ['tls: has no value: write one ("" for an empty text) or take the line out']),
        (["tls_name: x.org"], ["tls_name: needs tls beside it: write `tls: starttls` or `tls: implicit`"]),
        (["tls_verify: no"], ["tls_verify: needs tls beside it: write `tls: starttls` or `tls: implicit`"]),
        (["tls: starttls", "tls_verify: maybe"], ['tls_verify: must be true or false, not "maybe"']),
        (
            ["tls: starttls", f"tls_fingerprint: {DIGEST}", "tls_verify: no"],
            ["tls_verify: cannot be no beside tls_fingerprint: take one of the two out"],
        ),
        (
            ["tls: starttls", "tls_fingerprint: abcd"],
            ["tls_fingerprint: must be a SHA-256 in hex: 64 digits, colons between two of them if you like"],
        ),
        (["tls: starttls", "tls_ca: none.pem"], ["tls_ca: {}/none.pem cannot be read: No such file or directory"]),
        (["tls: starttls", "tls_ca: /"], ["tls_ca: / is not a regular file"]),
        (["tls: starttls", "tls_ca: /dev/zero"], ["tls_ca: /dev/zero is not a regular file"]),
        (
            ["tls: starttls", "tls_ca: x.yml"],
            ["tls_ca: {}/x.yml holds no certificate (PEM: -----BEGIN CERTIFICATE-----)"],
        ),
        (["tls: starttls", "tls_cert: x.yml"], ["tls_cert: needs tls_key beside it, which may be the same file"]),
        (["tls: starttls", "tls_key: x.yml"], ["tls_key: needs tls_cert beside it, which may be the same file"]),
        (
            ["tls: starttls", "tls_cert: x.yml", "tls_key: x.yml"],
            ["tls_cert: {}/x.yml holds no certificate (PEM: -----BEGIN CERTIFICATE-----)"],
        ),
    ],
)
def test_errors(written: Written, lines: list[str], expected: list[str]) -> None:
    assert written.errors(*lines) == [each.format(written.path.parent) for each in expected]


def test_a_socket_needs_to_be_told_who_is_there(written: Written) -> None:
    address = "{socket: /run/store}"
    assert written.errors("tls: starttls", address=address) == [
        "tls: needs tls_name or tls_fingerprint beside a socket: there is no host to verify"
    ]
    written.load("tls: starttls", "tls_name: store.example.org", address=address)
    written.load("tls: starttls", f"tls_fingerprint: [{DIGEST}, {DIGEST.upper()}]", address=address)


def test_a_ca_and_a_digest_do_not_go_together(written: Written, authority: Authority) -> None:
    lines = ("tls: starttls", f"tls_ca: {authority.path}", f"tls_fingerprint: {DIGEST}")
    assert written.errors(*lines) == [
        "tls_ca: cannot stand beside tls_fingerprint, which says which certificate it has to be"
    ]


def test_what_is_not_looked_at_or_not_verified_is_noted(written: Written) -> None:
    assert written.load("tls: no", "tls_name: x.org")[1] == ["tls_name: is ignored: tls is no"]
    [note] = written.load("tls: implicit", "tls_verify: no")[1]
    assert note.startswith("tls_verify: is no, so nobody knows that this is the store")


def test_the_files_are_part_of_what_is_in_force_and_not_of_what_is_shown(
    written: Written, authority: Authority, ours: Signed
) -> None:
    lines = (f"tls_ca: {authority.path}", f"tls_cert: {ours.certificate}", f"tls_key: {ours.key}")
    backend, notes = written.load("tls: starttls", *lines)
    assert notes == [] and pickle.loads(pickle.dumps(backend)) == backend
    assert backend.tls_key is not None and backend.tls_key.octets == Path(ours.key).read_bytes()
    assert "PRIVATE" not in repr(backend) and "CERTIFICATE" not in repr(backend)
    renewed = written.path.parent / "ca.pem"
    renewed.write_bytes(Path(authority.path).read_bytes())
    first = written.load("tls: starttls", "tls_ca: ca.pem")[0]
    assert written.load("tls: starttls", "tls_ca: ca.pem")[0] == first
    renewed.write_bytes(renewed.read_bytes() * 2)
    assert written.load("tls: starttls", "tls_ca: ca.pem")[0] != first


def test_a_key_that_cannot_be_used(written: Written, authority: Authority, ours: Signed) -> None:
    other = authority.sign("other", client=True)
    encrypted = written.path.parent / "encrypted.key"
    encrypted.write_text(openssl("pkey", "-in", ours.key, "-aes128", "-passout", "pass:secret"))
    for key, what in [
        (other.key, "is not the key of tls_cert"),
        (ours.certificate, "holds no private key (PEM: -----BEGIN PRIVATE KEY-----)"),
        (
            str(encrypted),
            "is encrypted: nobody could type its password at a start; store it without one, mode 0600",
        ),
    ]:
        assert written.errors("tls: starttls", f"tls_cert: {ours.certificate}", f"tls_key: {key}") == [
            f"tls_key: {key} {what}"
        ]


def test_a_key_that_everybody_may_read_and_a_certificate_that_has_ended_are_noted(
    written: Written, authority: Authority
) -> None:
    old = authority.sign("old", client=True, begins=-9, ends=-2)
    Path(old.key).chmod(0o644)
    notes = written.load("tls: starttls", f"tls_cert: {old.certificate}", f"tls_key: {old.key}")[1]
    assert len(notes) == 2
    assert any(note.startswith(f"tls_cert: {old.certificate} was valid until 20") for note in notes)
    assert f"tls_key: {old.key} is open to everybody (mode 0644): chmod 0600, or 0640" in notes
