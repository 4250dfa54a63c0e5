"""Merges and studies on the Hub."""
