"""Scores a model: problems in, completions, scores with their uncertainty out. Knows nothing of merging.

``problems`` reads them, a backend completes prompts (``inference`` a model in memory, ``endpoint`` a
server), ``scorers`` judge the completions, ``statistics`` says what that is worth; ``tasks`` is the
language in which it is asked for, ``running`` the story, ``samples`` what is kept of it.
"""
