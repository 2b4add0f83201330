# SPDX-License-Identifier: GPL-3.0-or-later
"""What is the same in every database: the tables, and what a trigger on `route` has to do.

No name here is a reserved word of SQLite, PostgreSQL, MySQL or MariaDB (CHANGE, ROWS and SCHEMA are of the latter two),
so an operator's statements need no quotes, and are the same everywhere.

What a trigger does, whatever language it is written in: refuse if `fleet` has not exactly one row; add one to
`fleet.gen` and give it a random tag, which locks the row until the commit, so the order of gens is that of commits;
keep `fleet.routes`; and write a row of `changed` for each address whose backend or mark is another one than before.
"""

from typing import NamedTuple

LAYOUT = 1
"""Number of the schema. A proxy that meets a greater one keeps the table it has."""
MAX_ADDRESS = 512
MAX_BACKEND = 255
TABLES = ("fleet", "route", "changed", "node", "uncertain", "ask", "answer")


class Types(NamedTuple):
    """How a database calls what a column holds.

    Attributes:
        address, name, text: characters, compared octet by octet.
        integer: 64 bits, with a sign.
        flag: 0 or 1.
        of_route: a check of the columns `address` and `backend`, as SQL.
        extra: more columns of `fleet`, each with a comma before it.
        options: behind each table.
        of_rows: behind those of routes and changes, too.
    """

    address: str
    name: str
    text: str
    integer: str
    flag: str
    of_route: str
    extra: str = ""
    options: str = ""
    of_rows: str = ""


def tables(types: Types) -> tuple[str, ...]:
    """The statements that make the tables, without what is in them."""
    address, name, text, integer, flag, of_route, extra, options, of_rows = types
    return (
        # `one` makes sure that there is no second row.
        f"""CREATE TABLE fleet (
    one {integer} NOT NULL PRIMARY KEY CHECK (one = 1),
    gen {integer} NOT NULL,
    tag {integer} NOT NULL,
    floor {integer} NOT NULL,
    routes {integer} NOT NULL,
    layout {integer} NOT NULL{extra}
){options}""",
        f"""CREATE TABLE route (
    address {address} NOT NULL PRIMARY KEY,
    backend {name},
    moving {flag} NOT NULL DEFAULT 0 CHECK (moving IN (0, 1)),
    moving_by {name},
    moving_at {integer},
    {of_route}
){options}{of_rows}""",
        f"""CREATE TABLE changed (
    gen {integer} NOT NULL,
    address {address} NOT NULL,
    old_backend {name},
    new_backend {name},
    moving {flag} NOT NULL,
    tag {integer} NOT NULL,
    made_at {integer} NOT NULL,
    made_by {name},
    PRIMARY KEY (gen, address)
){options}{of_rows}""",
        f"""CREATE TABLE node (
    name {name} NOT NULL PRIMARY KEY,
    epoch {integer} NOT NULL,
    state {name} NOT NULL,
    version {name} NOT NULL,
    meaning {name} NOT NULL,
    seen_gen {integer},
    seen_tag {integer},
    waiting {text} NOT NULL,
    refused {text} NOT NULL,
    renewed {integer} NOT NULL,
    unclean {flag} NOT NULL,
    fenced_epoch {integer}
){options}""",
        f"""CREATE TABLE uncertain (
    node {name} NOT NULL,
    epoch {integer} NOT NULL,
    gen {integer} NOT NULL,
    address {address} NOT NULL,
    noted_at {integer} NOT NULL,
    detail {text} NOT NULL
){options}""",
        "CREATE INDEX uncertain_address ON uncertain (address)",
        f"""CREATE TABLE ask (
    id {integer} NOT NULL PRIMARY KEY,
    node {name} NOT NULL,
    epoch {integer} NOT NULL,
    question {text} NOT NULL,
    deadline {integer} NOT NULL
){options}""",
        f"""CREATE TABLE answer (
    id {integer} NOT NULL,
    node {name} NOT NULL,
    epoch {integer} NOT NULL,
    answer {text} NOT NULL,
    PRIMARY KEY (id, node)
){options}""",
    )
