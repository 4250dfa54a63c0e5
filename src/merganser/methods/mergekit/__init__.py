"""The arithmetic of MergeKit's releases, to reproduce their merges.

Every method as MergeKit 0.1.5 computes it: in the dtype of its inputs, each step rounded to it,
with that release's thresholds, orders and errors. ``docs/differences.md`` lists the intended
differences from the exact methods, with measurements. Random methods draw from other generators,
so their results have MergeKit's distribution but not its bits. The formulas describe what the
release computes; ``tests/parity/test_parity_methods.py`` compares them with it.
"""
