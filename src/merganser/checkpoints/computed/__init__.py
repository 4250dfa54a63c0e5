"""Checkpoints whose tensors are computed from other checkpoints during reading."""
