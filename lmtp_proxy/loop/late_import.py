# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this is a good moment for an import amid the work: not while no file can be opened.

An import that fails half-way for that may go unnoticed, and what it brings stays without a part for ever: smtplib
without ssl, say. It does not know what is imported.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_SPARE = 4  # one for a module, the rest in case a thread opens some at the same time


@contextmanager
def late_import() -> Iterator[None]:
    """Around an import. Raises OSError, before it, unless some files can be opened."""
    with ExitStack() as opened:
        for _ in range(_SPARE):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    yield
    gc.freeze()  # what is imported stays: as after a start, no need to walk it again and again
