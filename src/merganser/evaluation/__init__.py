"""Scores a model: problems in, completions, scores with their uncertainty out. It knows nothing of merging.

``problems`` reads them from files, ``hub_problems`` from data sets on the Hub, which ``presets`` names; a
backend completes prompts (``inference`` a model in memory, ``endpoint`` a server). ``scorers`` has the
rules, ``reward_model``, ``llm_judge`` and ``code_scorer`` the costly ones; ``judging`` calls them, and
``judgement_file`` stores what costs much. ``statistics`` says what the scores are worth.
``task_entries`` is the file format that asks for it, ``tasks`` what it asks for, ``running`` runs it,
``samples`` stores the completions.
"""
