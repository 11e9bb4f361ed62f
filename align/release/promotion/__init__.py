"""Whether a version may become the champion: both models on the same items, gates, approval, the page.

What judges a version comes in. A gate says what it saw and what it wanted; a person may accept a failure
(`data/policy/`). The alias moves in `aliases/`.
"""
