"""The one logger, and texts of others made safe to print.

Results never go through the logger: the command line sends it to stderr, a library user decides.

Knows nothing else.
"""

from __future__ import annotations

import logging
import re

__all__ = ["log", "printable"]

log = logging.getLogger("llmkit")

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text without what makes a terminal do something or show another order: such characters as their codes."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
