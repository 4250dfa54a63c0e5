"""The command line: each command parses, calls one function and prints. stdout is the result."""

from merganser.cli.program import main

__all__ = ["main"]
