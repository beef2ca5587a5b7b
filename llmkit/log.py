"""The one logger, and escaping of foreign text before it is printed.

Results never go through the logger: the command line sends it to stderr, a library user decides.

Knows nothing else.
"""

from __future__ import annotations

import logging
import re

__all__ = ["log", "printable"]

log = logging.getLogger("llmkit")

_CONTROL = re.compile("\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text with control characters and bidirectional marks replaced by their escape codes."""
    return _CONTROL.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    # JSON escapes those below a space itself; the others stay valid in its strings like this.
    return f"\\x{ord(found[0]):02x}" if found[0] < " " else f"\\u{ord(found[0]):04x}"
