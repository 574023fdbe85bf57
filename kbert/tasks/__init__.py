"""The tasks that a BERT is fine-tuned for: examples to predictions, and what they score."""
