"""What MLflow is told of a run and of a version: metrics, pictures, card, origin, and the tag in git that keeps it.

Its numbers are those of the stages' reports. Nothing here judges a model or moves the champion.
"""
