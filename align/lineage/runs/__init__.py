"""Runs: every run that a checkout knows, with its numbers, and two or more side by side.

compare   the verb `align compare`
run       one run: parameters, code, data, main metrics
costs     what its training cost, as MLflow has it
run_list  all runs, finished or not, as `align runs` prints them
tables    what differs between runs, as rows, text and a page

What reads or shows a run that has begun comes in. What starts, repairs or records one is in `flows/`. The only room of
lineage that this one knows is `versions`.
"""
