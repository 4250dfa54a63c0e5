"""The version of Merganser."""

VERSION = "0.1.0"
