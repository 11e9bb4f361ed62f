"""What an image/alt-text pair is made of: texts, pictures and addresses, as all stages use them."""
