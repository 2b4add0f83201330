# SPDX-License-Identifier: GPL-3.0-or-later
"""The status page, to read only.

In the order of their imports:

    graphics  numbers as text, curves and bars as inline SVG
    frame     the status page without its content
    page      its content
    server    what `metrics` serves, to read only
"""
