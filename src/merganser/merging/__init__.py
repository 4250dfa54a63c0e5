"""A recipe to a folder, to tensors in memory, or to several folders."""
