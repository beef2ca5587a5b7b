"""Pages about runs and evaluations, from the files that they wrote. No model is loaded."""
