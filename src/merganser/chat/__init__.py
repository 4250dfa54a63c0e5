"""Models that answer, without being written."""
