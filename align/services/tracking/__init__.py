"""Tracking: MLflow, whose runs, models and files the rest sees through this room.

tracker      runs, metrics, artifacts; the one module that imports MLflow
registry     versions of a model, their tags and aliases
address      which MLflow, and which run, as the environment says
database     where that file is, and where it says that artifacts are
live_log     metrics of a training run while it trains
tracked_run  a run as MLflow has recorded it; the addresses of its pages

What speaks to MLflow comes in. What a tag or a metric means does not: the verb that writes it knows.
"""
