"""Evaluation sets as people have them, one module per format: each reads items, and pictures as a stream."""
