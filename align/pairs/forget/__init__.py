"""How `align forget` works: what people wish to be forgotten, and what that touches."""
