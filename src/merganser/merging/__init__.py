"""Merge a recipe into a folder, into tensors in memory, or into several folders."""
