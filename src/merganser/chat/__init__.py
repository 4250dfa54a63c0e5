"""Answers of models and of merges in memory."""
