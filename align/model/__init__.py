"""The dual encoder: towers, loss, tokenizer, preprocessing, and the embedder that puts them together."""
