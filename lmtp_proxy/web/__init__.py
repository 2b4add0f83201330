# SPDX-License-Identifier: GPL-3.0-or-later
"""The status page, to read only.

    shared_answer  one answer for all who ask at the same time
    graphics       numbers as text, curves and bars as inline SVG
    frame          the status page without its content
    page           its content
    server         what `metrics` serves, to read only
"""
