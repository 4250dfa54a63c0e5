"""Evaluation of a model: from problems to completions, scores and their uncertainty. Independent of merging.

``problems`` reads problems from files, ``hub_problems`` from data sets on the Hub; ``presets`` names
public data sets. A backend completes prompts: ``inference`` and ``continuous`` run a transformers model,
``vllm_backend`` runs vLLM, ``endpoint`` calls a server. ``samples`` stores the completions.
``scorers`` contains the rule-based scorers; ``reward_model``, ``llm_judge`` and ``code_scorer`` are the
costly ones. ``judging`` calls scorers, and ``judgement_file`` stores costly scores. ``statistics``
computes means, errors and intervals of scores.
``task_entries`` defines the keys of an evaluation file, ``tasks`` builds tasks from them, and ``running``
evaluates a model on the tasks.
"""
