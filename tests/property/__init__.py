# SPDX-License-Identifier: GPL-3.0-or-later
"""Properties that hold for any input, searched for counterexamples by hypothesis."""
