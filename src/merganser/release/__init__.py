"""The files that make a folder of weights a published model: config, tokenizer, card, manifest."""
