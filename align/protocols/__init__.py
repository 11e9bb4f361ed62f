"""What parts ask of the outside world, and `align.services` implements: one file for each kind of service."""
