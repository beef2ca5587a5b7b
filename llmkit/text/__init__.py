"""Text utilities: languages, scripts, sentences, markup. Independent of tasks, models and tensors."""
