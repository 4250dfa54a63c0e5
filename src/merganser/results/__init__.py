"""What a study measured: scores, fronts, lines between models, completions."""
