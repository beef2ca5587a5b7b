"""Tools on text: languages, scripts, sentences, markup. They know no task, no model and no tensors."""
