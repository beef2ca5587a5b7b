"""``python -m llmkit``, and ``accelerate launch -m llmkit``."""

from __future__ import annotations

import sys

from llmkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
