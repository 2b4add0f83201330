# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader of a runnable page sees what would be wrong with it. Needs no server."""

from pathlib import Path

import pytest

from .shell_doc import Command, File, Shell, differences, steps

PAGE = """\
Text with `/not/a/file` in it. `/etc/some.conf`:

```
key = value
```

```console
# echo one
one
# for i in 1 2; do
>   echo $i
> done
1
2
```

```text
# not run
```
"""


def test_steps_of_a_page() -> None:
    assert list(steps(PAGE)) == [
        File("/etc/some.conf", "key = value\n"),
        Command("echo one", ["one"]),
        Command("for i in 1 2; do\n  echo $i\ndone", ["1", "2"]),
    ]


@pytest.mark.parametrize(
    "shown, got, wrong",
    [
        (["done in 40 ms"], ["done in 12.5 s"], 0),
        (["done in 40 ms"], ["done in 12.5 m"], 1),
        (["1,001 on new[192.0.2.20:24]"], ["13 on new[127.0.0.1:23456]"], 0),
        (["a   b"], ["a b"], 0),
        (["old -> new"], ["old -> old"], 1),
        (["session ac6fc817"], ["session 12345678"], 0),
        (["one"], [], 1),
        ([], ["an error"], 1),
        (["first", "...", "last"], ["first", "x", "y", "last"], 0),
        (["first", "...", "last"], ["first", "x", "y", "other"], 1),
        (["first", "...", "last"], ["other", "last"], 1),
        (["took long"], ["took no time"], 0),
    ],
)
def test_differences(shown: list[str], got: list[str], wrong: int) -> None:
    assert len(differences(shown, got, {"took .*": "took"})) == wrong


def test_a_shell_keeps_its_state_and_both_streams(tmp_path: Path) -> None:
    with Shell(tmp_path, {"A": "1"}) as shell:
        assert shell.run("cd / && B=2; echo $A$B; echo error >&2") == ["12", "error"]
        assert shell.run("pwd; false") == ["/"]
        assert shell.run("echo $?") == ["1"]
        assert shell.run("cat; printf 'no line end'") == ["no line end"]  # its input is not the next command
        assert shell.run("f() { echo in f; }") == []
        assert shell.run("f") == ["in f"]
