"""Checkpoints whose tensors are computed from those of others when they are read."""
