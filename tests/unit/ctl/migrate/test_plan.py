# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan as YAML: every mistake with its line, and what a command is given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lmtp_proxy.ctl.migrate.plan import HOOK_KEYS, HOOKS, KEYS, Plan, PlanError, environment, load_plan, parse_plan
from lmtp_proxy.ctl.mta import Mta
from tests import ROOT

PAGE = (ROOT / "docs" / "lmtp-proxy-migrate.5").read_text("utf-8")
LEAST = "from: old\nto: new\npark: reject\nsync: [copy, '{user}']\n"


def errors(text: str) -> list[str]:
    with pytest.raises(PlanError) as raised:
        parse_plan(text, "p.yml")
    return list(raised.value.errors)


def test_the_least_plan_and_its_defaults() -> None:
    plan = parse_plan(LEAST, "p.yml")
    assert (plan.old, plan.new, plan.park, plan.max_syncs) == ("old", "new", "reject", 3)
    assert not plan.go_on_if_uncertain
    assert plan.requeue == Mta("postfix", ("postqueue",)) and plan.journal == "/var/lib/lmtp-proxy/migrate.db"
    assert plan.hooks.keys() == {"sync", "final_sync"} and plan.hooks["final_sync"] is plan.hooks["sync"]
    assert plan.hooks["sync"].timeout == 6 * 3600 and plan.drain_timeout == 600 and plan.sync_again_above == 60


def test_a_whole_plan() -> None:
    plan = parse_plan(
        LEAST + "domain: example.org\nfinal_sync: {command: [copy, -f, '{address}'], timeout: 90, again: [2, 75], "
        "attempts: 7}\nblock: [b, '{user}']\nunblock: [u, '{user}', '{now}']\nredirect: [r]\nverify: [v]\n"
        "max_syncs: 1\nsync_again_above: 0.5\non_uncertain: go_on\nrequeue: [postqueue, -c, /etc/p, -i]\n"
        "journal: /x/j.db\ndrain_timeout: 30\n",
        "p.yml",
    )
    hook = plan.hooks["final_sync"]
    assert (hook.timeout, hook.again, hook.attempts, hook.shell) == (90.0, frozenset({2, 75}), 7, False)
    assert hook.filled(plan.values("alice", "old")) == ("copy", "-f", "alice@example.org")
    assert hook.filled(plan.values("alice@example.net", "old"))[-1] == "alice@example.net"
    assert plan.hooks["unblock"].filled(plan.values("alice", "new")) == ("u", "alice", "new")
    assert plan.requeue == Mta("postfix", ("postqueue", "-c", "/etc/p")), "-i is added with each id"
    assert plan.go_on_if_uncertain and plan.journal == "/x/j.db"
    assert parse_plan(LEAST + "requeue: no\n", "p.yml").requeue is None


def test_what_is_proven_is_about_no_user() -> None:
    plan = parse_plan(LEAST + "domain: example.org\nprove: [kept-apart, '{from}', '{to}', test1]\n", "p.yml")
    hook, values = plan.hooks["prove"], plan.values("", "")
    assert hook.timeout == 300 and hook.filled(values) == ("kept-apart", "old", "new", "test1")
    assert environment(values) == {
        "MIGRATE_USER": "", "MIGRATE_ADDRESS": "", "MIGRATE_FROM": "old", "MIGRATE_TO": "new", "MIGRATE_NOW": "",
    }  # fmt: skip


def filled(argument: str, user: str) -> str:
    plan = parse_plan(LEAST.replace("'{user}'", argument), "p.yml")
    return plan.hooks["sync"].filled(plan.values(user, "old"))[1]


@pytest.mark.parametrize(
    "user", ["a b", "'", '"', ";", "$(id)", "{to}", "{{", "}", "-x", "--", "ü", "\\", "\\1", "\\g<0>", "%s", "*"]
)
def test_a_name_stays_what_it_is(user: str) -> None:
    assert filled("'{user}'", user) == user
    assert filled("'x={user}.{from}'", user) == f"x={user}.old"
    assert filled("'{{user}} {user}'", user) == f"{{user}} {user}"


def test_a_shell_gets_names_as_values_only() -> None:
    plan = parse_plan(LEAST + "block: {shell: yes, command: 'echo \"$1\" | cat > ${HOME}/x'}\nunblock: [u]\n", "p.yml")
    hook = plan.hooks["block"]
    values = plan.values("$(id)", "old")
    assert hook.filled(values) == (
        "/bin/sh", "-c", 'echo "$1" | cat > ${HOME}/x', "migrate", "$(id)", "$(id)", "old", "new", "old",
    )  # fmt: skip
    assert hook.program == "/bin/sh" and environment(values)["MIGRATE_USER"] == "$(id)"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", ["p.yml: is empty: a plan needs from, to, park and sync"]),
        ("from: old\n", ["p.yml: to: is missing", "p.yml: park: is missing", "p.yml: sync: is missing"]),
        (LEAST + "final_sink: [x]\n", ["p.yml:5: final_sink: unknown key, did you mean final_sync?"]),
        (LEAST + "from: x\n", ["p.yml:5: from: is given twice, first on line 1"]),
        (LEAST.replace("to: new", "to: old"), ["p.yml:2: to: is the backend that users come from"]),
        (LEAST.replace("to: new", "to: hold"), ["p.yml:2: to: must be a backend; hold is for `park`"]),
        (LEAST.replace("reject", "rejekt"), ['p.yml:3: park: must be reject or hold, not "rejekt"']),
        (LEAST + "block: [x]\n", ["p.yml:5: block: needs an `unblock`, or nobody who is put back gets at their mail"]),
        (LEAST + "verify: '{user}'\n",
         ['p.yml:5: verify: must be an argument list, as [program, "{user}"], or a mapping with `command`']),
        (LEAST + "verify: {command: x}\n",
         ['p.yml:5: verify.command: must be an argument list, as [program, "{user}"]; a text is for `shell: yes`']),
        (LEAST + "verify: {timeout: 5}\n", ["p.yml:5: verify.command: is missing"]),
        (LEAST + "verify: [v, '{usr}']\n",
         ["p.yml:5: verify: {usr} is no placeholder; there are {user} {address} {from} {to} {now}; a brace itself is "
          "{{ or }}"]),
        (LEAST + "verify: [v, 'a{b']\n",
         ["p.yml:5: verify: { is no placeholder; there are {user} {address} {from} {to} {now}; a brace itself is {{ or "
          "}}"]),
        (LEAST + "prove: [v, '{user}']\n",
         ["p.yml:5: prove: {user} is no placeholder here; there are {from} {to}; a brace itself is {{ or }}"]),
        (LEAST + "prove: {command: [v, '{to}', '{now}']}\n",
         ["p.yml:5: prove.command: {now} is no placeholder here; there are {from} {to}; a brace itself is {{ or }}"]),
        (LEAST + "verify: ['{user}']\n", ["p.yml:5: verify: the program cannot depend on the user"]),
        (LEAST + "verify: []\n", ["p.yml:5: verify: names no program"]),
        (LEAST + "verify: [v, {user: 1}]\n",
         ["p.yml:5: verify: each argument must be a single text; what begins with { must be in quotes"]),
        (LEAST + "verify: {shell: yes, command: 'rm {user}'}\n",
         ['p.yml:5: verify.command: nothing is put into the text of a shell: write "$MIGRATE_USER" for {user}']),
        (LEAST + "verify: {shell: yes, command: [a]}\n",
         ['p.yml:5: verify.command: with `shell: yes` it must be one text; the user is "$1" or "$MIGRATE_USER" in it']),
        (LEAST + "verify: {command: [v], again: 2}\n",
         ["p.yml:5: verify.again: must be a list of exit statuses, as [2]"]),
        (LEAST + "verify: {command: [v], ok: 0}\n",
         ["p.yml:5: verify.ok: must be a list of exit statuses, as [0, 111]"]),
        (LEAST + "verify: {command: [v], ok: [0, 2], again: [2]}\n", ["p.yml:5: verify.again: has 2, which is `ok`"]),
        (LEAST + "verify: {command: [v], again: [0]}\n",
         ['p.yml:5: verify.again: must be a whole number from 1 to 255, not "0"']),
        (LEAST + "verify: {command: [v], timeout: 0}\n", ["p.yml:5: verify.timeout: must be more than 0"]),
        (LEAST + "max_syncs: 0\ndrain_timeout: soon\n",
         ['p.yml:5: max_syncs: must be a whole number from 1 to 100, not "0"',
          'p.yml:6: drain_timeout: must be a number of seconds from 0 to 86400, not "soon"']),
        (LEAST + "journal: here\n", ['p.yml:5: journal: must be the absolute path of a file, not "here"']),
        (LEAST + "requeue: yes\n",
         ["p.yml:5: requeue: must be the argument list that calls postqueue, as [postqueue], or no, or have an `mta`"]),
        (LEAST + "requeue: {mta: qmail}\n",
         ["p.yml:5: requeue.mta: must be postfix, exim, sendmail, opensmtpd or an argument list, not 'qmail'"]),
        (LEAST + "requeue: {command: [exim4]}\n", ["p.yml:5: requeue.mta: is missing"]),
        (LEAST + "requeue: {mta: exim, command: exim4}\n",
         ["p.yml:5: requeue.command: must be the argument list that calls the MTA's program, as [exim4, -C, FILE]"]),
        (LEAST + "requeue: {mta: [r, '{usr}']}\n",
         ["p.yml:5: requeue.mta: {usr} is no placeholder; there are {user} {address}; a brace itself is {{ or }}"]),
        (LEAST + "requeue: {mta: [r, '{user}'], command: [r]}\n",
         ["p.yml:5: requeue.command: is how an MTA's program is called, and `mta` is a command itself"]),
        (LEAST + "on_uncertain: shrug\n", ['p.yml:5: on_uncertain: must be fail or go_on, not "shrug"']),
        ("from: [\n", ["p.yml:2: YAML error: while parsing a flow node, did not find expected node content (it begins "
                       "on line 2)"]),
    ],
)  # fmt: skip
def test_every_mistake_has_its_line(text: str, expected: list[str]) -> None:
    found = errors(text)
    if expected[0].startswith("p.yml:2: YAML"):
        assert len(found) == 1 and "YAML error" in found[0]
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("requeue", "mta"),
    [
        ("{mta: postfix}", Mta("postfix", ("postqueue",))),
        ("{mta: exim}", Mta("exim", ("exim4",))),
        ("{mta: sendmail, command: [sendmail, -Am]}", Mta("sendmail", ("sendmail", "-Am"))),
        ("{mta: opensmtpd}", Mta("opensmtpd", ("smtpctl",))),
        ("{mta: [r, '{user}', '{address}']}", Mta("own", ("r", "{user}", "{address}"), "example.org")),
    ],
)
def test_the_mta_that_tries_again(requeue: str, mta: Mta) -> None:
    assert parse_plan(f"{LEAST}domain: example.org\nrequeue: {requeue}\n", "p.yml").requeue == mta


def test_all_mistakes_at_once() -> None:
    assert len(errors("from: old\nto: old\npark: x\nsync: y\nmax_syncs: z\n")) == 4


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be read: No such file"):
        load_plan(str(tmp_path / "none"))
    path = tmp_path / "p.yml"
    path.write_bytes(b"from: old\nto: \xff\n")
    with pytest.raises(PlanError, match=r"p\.yml:2: is not UTF-8 text"):
        load_plan(str(path))
    path.write_text("\ufeff" + LEAST)
    assert isinstance(load_plan(str(path)), Plan)


# --- the man page ----------------------------------------------------------------------------------------------------


def test_the_man_page_has_each_key_with_its_default() -> None:
    shown = dict(re.findall(r"(?m)^\.It Cm (\w+) Pq (.*)$", PAGE))
    assert set(shown) == set(KEYS)
    plan = parse_plan(LEAST, "p.yml")
    for key in ("max_syncs", "sync_again_above", "drain_timeout", "journal"):
        value = getattr(plan, key)
        assert shown[key] == (value if isinstance(value, str) else f"{value:g}"), key
    assert {key for key, default in shown.items() if default == "required"} == {"from", "to", "park", "sync"}
    commands = PAGE.partition(".Sh COMMANDS")[2].partition(".Pp\nPlaceholders")[0]
    assert re.findall(r"(?m)^\.It Cm (\w+)$", commands) == list(HOOK_KEYS)
    timeouts = {str(int(seconds)) for seconds in HOOKS.values()}
    assert timeouts == set(re.findall(r"(?m)^(?:Seconds, by default )?(\d+) for", commands))


def test_the_example_of_the_man_page_and_of_the_documentation_can_be_used() -> None:
    [example] = re.findall(r"(?s)\.Sh EXAMPLES\n\.Bd .*?\n(.*?)\.Ed", PAGE)
    assert parse_plan(example, "p.yml").hooks["block"].arguments[1] == "--"
    migration = (ROOT / "docs/migration.md").read_text("utf-8")
    [block] = re.findall(r"(?s)## With one command\n.*?```yaml\n(.*?)```", migration)
    assert parse_plan(block, "p.yml").hooks["sync"].again == {2}
