"""The quality gates: `align validate` over tables, `align validate_shards` over every sample.

What the data must be comes in as an expectation, and what it is as a statistic; the bounds are in params.yaml. A gate
stops a run by its verdict and changes no data. Great Expectations itself is in `services/expectations`.
"""
