"""Search: the index of images, queries against it, and embeddings of one's own data."""
