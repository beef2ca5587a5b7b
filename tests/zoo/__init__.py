"""A tiny random model of every type that Transformers can build for a head of llmkit, and what llmkit makes of it.

`configs` shrinks a type's config, `tokenizers` trains a tokenizer of its class, `models` writes the checkpoint, and
`measure` runs it through llmkit. Shared by the sampled test and by ``benchmarks/zoo.py``, which writes the table.
"""
