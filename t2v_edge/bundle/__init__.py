"""The bundle: its manifest, files, tokenizer and golden vectors; opened, checked and written."""
