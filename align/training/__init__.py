"""Training: the tokenizer, pre-training and fine-tuning, with loss, loop, loader, optimiser, checkpoints and ranks."""
