"""What makes a folder of weights a published model: config, tokenizer files, card, manifest."""
