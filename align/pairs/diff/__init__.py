"""How `align diff` works: two versions of the dataset side by side."""
