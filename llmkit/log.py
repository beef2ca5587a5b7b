"""The one logger. Results never go through it: the command line sends it to stderr, a library user decides.

Knows nothing else.
"""

from __future__ import annotations

import logging

__all__ = ["log"]

log = logging.getLogger("llmkit")
