"""Search: the index of images, queries against it, and embeddings of your own data."""
