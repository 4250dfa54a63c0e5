"""Scores a model: problems in, completions, scores with their uncertainty out. It knows nothing of merging.

``problems`` reads them, a backend completes prompts (``inference`` a model in memory, ``endpoint`` a
server), ``scorers`` judge the completions, ``statistics`` says what that is worth; ``tasks`` is the
file format that asks for it, ``running`` runs it, ``samples`` stores the completions.
"""
