"""The arithmetic of MergeKit's releases, for those who must reproduce a merge that was made with one.

Every method as MergeKit 0.1.5 computes it: in the dtype of its inputs, each step rounded to it, with
that release's thresholds, orders and refusals. What differs from the exact methods on purpose, and by
how much, is measured in ``docs/differences.md``. Random methods draw from generators of their own, so
their results have MergeKit's distribution but not its bits. All formulas are written down from what
the release computes; ``tests/parity/test_parity_methods.py`` holds them against it.
"""
