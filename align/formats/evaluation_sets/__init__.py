"""Evaluation sets as people have them, one module a format: each reads items, and pictures as a stream.

named     the sets that `paths.evaluation` names
files     what the readers share

Another layout of sets comes in as another module. What is measured on a set is in `evaluate/`.
"""
