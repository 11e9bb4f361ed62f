"""What MLflow is told of a run and of a version: metrics, pictures, card, origin, and the tag in git that keeps it."""
