"""Studies: sweeps and searches, which merge and score many points that one file describes."""
