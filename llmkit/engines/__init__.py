"""Engines: a model that runs prompts, behind one protocol (`llmkit.engines.base`). They do not know each other."""
