"""Whether a version may become the champion: both models on the same items, gates, approval, the page."""
