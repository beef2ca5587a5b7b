"""What a model does with one text: the choices along a generation, and what each token attends to."""
