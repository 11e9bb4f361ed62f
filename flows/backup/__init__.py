"""`make backup` and `make restore`: what a checkout has that git, the source and a run do not bring back."""
