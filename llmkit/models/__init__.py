"""Models: what a name means, which class a checkpoint gets, and how its files become a model."""
