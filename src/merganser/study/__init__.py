"""Studies: run, score and search many merges that one file describes."""
