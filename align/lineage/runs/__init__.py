"""Runs: every run that MLflow has of this checkout, with its numbers, and two or more side by side.

compare   the verb `align compare`
run       one run: parameters, main metrics, digests, what its training cost; of MLflow, or this checkout as it is
listing   all runs, finished or not, as `align runs` prints them
tables    what differs between runs, as rows, text and a page
study     the runs of a study, by their tags: what they found

What reads or shows a run that has begun comes in. What starts, repairs or records one is in `flows/`.
"""
