"""The pipelines of Transformers 4 that version 5 removed."""
