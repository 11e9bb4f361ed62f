"""The interfaces that `align.services` implements and all other code uses: one file for each kind of service."""
