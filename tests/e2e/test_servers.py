# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand without the proxy: Postfix straight into each store. When these fail, look here and not at the proxy."""

import random
from dataclasses import replace

import pytest

from .conftest import Stack
from .mail import awkward_body, check_copies, large_body, message, read_back, submit_at_once


@pytest.mark.parametrize("name", ["old", "new"])
def test_postfix_straight_into_the_store(stack: Stack, name: str) -> None:
    users = stack.users(2)
    rng = random.Random(1)
    messages = [message(f"straight-{name}-{number}", users, awkward_body(rng)) for number in range(40)]
    messages.append(message(f"straight-{name}-large", users, large_body(rng, 2_000_000)))
    addresses = tuple(f"{user}@straight-{name}.test" for user in users)

    queue_ids = submit_at_once(stack.postfix, [replace(item, recipients=addresses) for item in messages], sessions=4)

    stack.postfix.wait_removed(queue_ids.values(), 30)
    found = read_back(stack.stores, users)
    check_copies(messages, found)
    assert {copy.store for copies in found.values() for copy in copies} == {{"old": "Cyrus", "new": "Dovecot"}[name]}
    assert {attempt.status for attempt in stack.postfix.attempts(queue_ids.values())} == {"sent"}
