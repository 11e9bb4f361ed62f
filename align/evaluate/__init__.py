"""What is measured and how: retrieval, zero-shot classification, nearest neighbours; always with
an interval and the chance level.

Pure functions over similarity matrices and labels first; only `sets` reads files.
"""
