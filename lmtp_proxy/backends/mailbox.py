# SPDX-License-Identifier: GPL-3.0-or-later
"""One mailbox of a backend: how many of its places are taken.

What is routed there refers to it, so that a message which takes a place looks nothing up.
"""


class Mailbox:
    """Of one backend there are no two of the same name; see Mailboxes.at.

    Attributes:
        name: the address without detail, or what else the mail ends in.
        taken: places, now.
    """

    __slots__ = ("__weakref__", "name", "taken")

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken = 0

    def __repr__(self) -> str:
        return f"<Mailbox {self.name} taken={self.taken}>"
