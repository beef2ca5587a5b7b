"""From a recipe to a tuned model: data as the model sees it, and what training will cost."""
