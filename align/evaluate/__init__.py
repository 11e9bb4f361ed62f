"""Evaluation: retrieval, zero-shot classification and nearest neighbours, each with an interval and its chance level.

`recall`, `intervals`, `zero_shot` and `knn` are pure functions of embeddings and labels; `measure` applies them.
"""
