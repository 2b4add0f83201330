# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documents say, held to the code."""
