"""The fine-tuning tasks: reading and encoding examples, losses, predictions and metrics."""
