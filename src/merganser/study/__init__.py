"""Studies: many merges of one file, and what sets models apart."""
