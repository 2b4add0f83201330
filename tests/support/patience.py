# SPDX-License-Identifier: GPL-3.0-or-later
"""How long tests wait for what only has to happen."""

SOON = 20.0
"""Seconds in which it has happened also on a machine that has ten times as much to do as it has cores.

It costs nothing where all is well. A test whose subject is a limit of time has the limit, and what would happen without
it takes so much longer that a bound between the two stands such a machine.
"""
