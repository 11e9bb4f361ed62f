"""The model folder that `align package` writes: Python code that runs where no `align` is installed.

Equal inputs give equal bytes, so nothing of a run comes in: no time, no host, no name of a folder. What a version says
of its run is told to MLflow in `registration/`.
"""
