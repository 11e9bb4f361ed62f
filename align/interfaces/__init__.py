"""What services offer, as the stages see it: signatures without an implementation."""
