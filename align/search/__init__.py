"""Search: the index of images, queries against it, and embeddings of one's own data.

Each verb is a module: `index`, a stage, and `search`, `embed`, `ready`. What forms a query or shows an answer comes in.
What answers strangers over HTTP is in `service/`, the index on disk in `formats/`, faiss in `services/vector_index`.
"""
