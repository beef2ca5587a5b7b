"""Judging models. Knows how rows are answered and judged; the figures themselves are `llmkit.metrics`'."""
