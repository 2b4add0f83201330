# SPDX-License-Identifier: GPL-3.0-or-later
"""`config.tls`: which keys may stand together, and what is wrong, in one line each."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from lmtp_proxy.config.read import load_config
from lmtp_proxy.config.values import Config, ConfigError
from tests import ROOT
from tests.support.certificates import Authority, Signed


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Signed:
    return authority.sign("proxy")


class Written:
    """A configuration in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "x.yml"

    def load(self, *lines: str, socket: str = "[127.0.0.1, 2424]") -> tuple[Config, list[str]]:
        """And the notes on it."""
        inside = "\n".join(f"    {line}" for line in lines)
        self.path.write_text(
            f"config:\n  socket: {socket}\n  tls:\n{inside}\nbackends:\n  b: {{socket: /b}}\nusers:\n  u: b\n", "utf-8"
        )
        config = load_config(str(self.path))
        return config, [note.partition("config.")[2] for note in config.notes]

    def errors(self, *lines: str) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            self.load(*lines)
        assert all(error.startswith(f"{self.path}:") and "\n" not in error for error in raised.value.errors)
        return [error.partition("config.")[2] for error in raised.value.errors]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def pair(signed: Signed) -> tuple[str, str]:
    return f"cert: {signed.certificate}", f"key: {signed.key}"


def test_the_least(written: Written, ours: Signed) -> None:
    config, notes = written.load(*pair(ours))
    tls = config.tls
    assert tls is not None and notes == []
    assert (tls.ca, tls.required, tls.implicit, tls.allow_subjects) == (None, False, False, None)
    assert pickle.loads(pickle.dumps(config)).tls == tls and "PRIVATE" not in repr(config)


def test_all(written: Written, ours: Signed, authority: Authority) -> None:
    lines = (f"ca: {authority.path}", "required: yes", 'allow_subjects: [mx1.example.org, "CN=mx2, O=Example"]')
    tls = written.load(*pair(ours), *lines)[0].tls
    assert tls is not None and tls.ca is not None
    assert (tls.required, tls.allow_subjects) == (True, ("mx1.example.org", "CN=mx2, O=Example"))
    tls = written.load(*pair(ours), "implicit: yes", lines[0])[0].tls
    assert tls is not None and tls.implicit and tls.required


def test_what_is_ignored_is_noted(written: Written, ours: Signed) -> None:
    assert written.load(*pair(ours), "implicit: yes", "required: no")[1] == [
        "tls.required: is ignored: implicit is yes, so there is nothing before TLS"
    ]
    [note] = written.load(*pair(ours), socket="/run/x")[1]
    assert note == "tls: is ignored: there is no TLS on a unix socket, and socket names no other"
    assert written.load(*pair(ours), socket='[/run/x, ["::1", 24]]')[1] == []


@pytest.mark.parametrize(
    "lines, expected",
    [
        (("required: yes",), r"tls: needs cert and key: .*"),
        (("cert: {cert}",), r"tls\.cert: needs key beside it, which may be the same file"),
        (("key: {key}",), r"tls\.key: needs cert beside it, which may be the same file"),
        (("cert: {cert}", "key: {key}", "ca: {ca}"), r"tls\.ca: needs `required: yes` beside it: .*"),
        (("cert: {cert}", "key: {key}", "allow_subjects: mx1"), r"tls\.allow_subjects: needs ca beside it: .*"),
        (
            ("cert: {cert}", "key: {key}", "ca: {ca}", "implicit: yes", "allow_subjects: []"),
            r"tls\.allow_subjects: would refuse everybody: .*",
        ),
        (("cert: {ca}", "key: {key}"), r"tls\.key: \S+ is not the key of cert"),
        (("cert: {key}", "key: {key}"), r"tls\.cert: \S+ holds no certificate .*"),
        (("cert: {cert}", "key: /nowhere"), r"tls\.key: /nowhere cannot be read: No such file or directory"),
        (("cert: {cert}", "key: {key}", "ca: {key}", "required: yes"), r"tls\.ca: \S+ holds no certificate .*"),
        (("cert: {cert}", "key: {key}", "requried: yes"), r"tls\.requried: unknown key, did you mean required\?"),
        (("cert: {cert}", "key: {key}", "required: often"), r"tls\.required: must be .*"),
    ],
)
def test_errors(written: Written, ours: Signed, authority: Authority, lines: tuple[str, ...], expected: str) -> None:
    filled = [line.format(cert=ours.certificate, key=ours.key, ca=authority.path) for line in lines]
    [error] = written.errors(*filled)
    assert re.fullmatch(expected, error), error


def test_not_a_mapping(written: Written) -> None:
    written.path.write_text("config:\n  socket: [127.0.0.1, 2424]\n  tls: yes\nbackends: {}\nusers: {}\n", "utf-8")
    with pytest.raises(ConfigError, match=r"config\.tls: must be a mapping"):
        load_config(str(written.path))


def test_an_expired_certificate_and_an_open_key_are_noted(written: Written, authority: Authority) -> None:
    old = authority.sign("old", begins=-9, ends=-2)
    Path(old.key).chmod(0o644)
    notes = written.load(*pair(old))[1]
    assert re.fullmatch(r"tls\.cert: \S+ was valid until \S+: clients may refuse it", notes[0])
    assert re.fullmatch(r"tls\.key: \S+ is open to everybody \(mode 0644\): .*", notes[1])


def test_the_example_in_the_file_is_right(written: Written, ours: Signed, authority: Authority) -> None:
    example = (ROOT / "etc/lmtp-proxy.yml").read_text("utf-8")
    [block] = re.findall(r"^  #tls:\n((?:  #  .*\n)+)", example, re.MULTILINE)
    text = block.replace("  #  ", "").replace("/etc/lmtp-proxy/proxy.pem", ours.certificate)
    text = text.replace("/etc/lmtp-proxy/proxy.key", ours.key).replace("/etc/lmtp-proxy/clients-ca.pem", authority.path)
    tls = written.load(*text.replace("required: false", "required: true").splitlines())[0].tls
    assert tls is not None and tls.allow_subjects == ("mx1.example.org", "CN=mx2, O=Example")
