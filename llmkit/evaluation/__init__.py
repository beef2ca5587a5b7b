"""Evaluation of models on rows with references. The metrics themselves are in `llmkit.metrics`."""
