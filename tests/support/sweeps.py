"""Sweep files that several tests use."""

SWEEP = """
name: m_w{{ w }}
sweep: {w: [0.3, 0.7]}
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
dtype: bfloat16
"""
