"""Diff: two versions of the data, pair by pair: which entered and left, and why.

diff    the verb `align diff`
tables  matches the pairs of both versions, as SQL
report  the numbers
page    the numbers as text and as a page

What compares data comes in; what compares runs and their metrics is in `runs`. The only room of lineage that this one
knows is `versions`.
"""
