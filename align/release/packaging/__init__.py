"""The model folder that `align package` writes: Python code that runs where no `align` is installed."""
