"""What services offer, as the stages see it: signatures, and the plain values that pass through them.

A stage that needs the outside world takes one of these, so a test can give another. No implementation comes in, and no
vendor's type: they are in `services/`.
"""
