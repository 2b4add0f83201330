# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests, and where what they test lies."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: the package, its documents and these tests."""
