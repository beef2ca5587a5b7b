"""The command line: parse, call the API, print. Results on stdout, everything else on stderr.

One module per group of commands. Imports nothing heavy until a command runs.
"""

from __future__ import annotations

from llmkit.cli.app import main

__all__ = ["main"]
