"""GGUF, the files of llama.cpp."""

from merganser.checkpoints.gguf.opening import open_folder as open_folder
