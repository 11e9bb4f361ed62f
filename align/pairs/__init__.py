"""What an image/alt-text pair is, where it comes from, and which ones we keep."""
