"""Evaluation sets as people have them, one format a module: each reads items, and pictures as a stream."""
