# SPDX-License-Identifier: GPL-3.0-or-later
"""The status page, to read only.

In the order of their imports:

    markup    HTML: escaping, colours, the frame of a document; the report of a migration has it, too
    graphics  curves, bars and histograms as inline SVG; the report has them, too
    frame     the status page without its content
    page      its content
    history   reloads and drains as an operator thinks of them
    server    what `metrics` serves, to read only
"""
