"""The trained checkpoint: its config, weights, tokenizer and cost."""
