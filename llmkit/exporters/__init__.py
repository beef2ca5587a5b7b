"""Exporting a model to the formats of other programs. Knows their converters; does not know prompts and tasks."""
