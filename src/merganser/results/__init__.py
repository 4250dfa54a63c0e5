"""The results of a study: scores, fronts, lines between models, completions."""
