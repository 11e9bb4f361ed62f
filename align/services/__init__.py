"""The outside world, one vendor a file."""
