"""The arguments of lmtp-proxy: what is understood without argparse is what argparse makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_proxy.cli_arguments import DEFAULT_CONFIG, Arguments, parsed, parser, plainly

WORDS = st.sampled_from(
    ["-c", "--config", "-D", "--daemonize", "--check", "-Dc", "-ca.yml", "--config=a.yml", "-c=a", "--conf"]
) | st.sampled_from(["a.yml", "/etc/a b.yml", "a=b", "", "-", "--", "-1"]) | st.text(max_size=3)


@given(st.lists(WORDS, max_size=5))
def test_what_is_understood_at_once_is_what_argparse_understands(arguments: list[str]) -> None:
    plain = plainly(arguments)
    if plain is not None:
        assert plain == Arguments(**vars(parser().parse_args(arguments)))


@pytest.mark.parametrize(
    "arguments, found",
    [
        ([], Arguments()),
        (["-c", "a.yml"], Arguments("a.yml")),
        (["--config", "a.yml", "-D"], Arguments("a.yml", daemonize=True)),
        (["-D", "-c", "a.yml"], Arguments("a.yml", daemonize=True)),
        (["--daemonize", "--check"], Arguments(DEFAULT_CONFIG, daemonize=True, check=True)),
        (["-c", "a.yml", "-c", "b.yml"], Arguments("b.yml")),
    ],
)
def test_what_is_usual_is_understood_at_once(arguments: list[str], found: Arguments) -> None:
    assert plainly(arguments) == found == parsed(arguments)


@pytest.mark.parametrize(
    "arguments, found",
    [
        (["-c"], Arguments()),
        (["-c", "-D"], Arguments(daemonize=True)),
        (["-ca.yml"], Arguments("a.yml")),
        (["--config=a.yml"], Arguments("a.yml")),
        (["-Dc", "a.yml"], Arguments("a.yml", daemonize=True)),
    ],
)
def test_what_is_unusual_is_understood_all_the_same(arguments: list[str], found: Arguments) -> None:
    assert plainly(arguments) is None
    assert parsed(arguments) == found


@pytest.mark.parametrize("arguments", [["a.yml"], ["-x"], ["--conf", "a"], ["--check=yes"]])
def test_what_is_wrong_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parsed(arguments)
    assert left.value.code == 2 and "usage: lmtp-proxy" in capsys.readouterr().err
