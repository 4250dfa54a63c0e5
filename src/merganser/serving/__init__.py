"""An OpenAI-compatible server: every point of a study by its name, from one set of weights."""
