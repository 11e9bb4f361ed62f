"""The data half against its peers."""
