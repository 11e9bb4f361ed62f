"""Release: a model folder that MLflow loads, its registration, promotion and rollback, and other tools' formats."""
