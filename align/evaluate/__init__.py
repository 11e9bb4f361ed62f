"""Evaluation: retrieval, zero-shot classification and nearest neighbours, each with an interval and its chance level.

`protocols` are pure functions of embeddings and labels; `measure` applies them to a set.
"""
