"""The published protocols, one a file: functions of embeddings and of what is right, with nothing around them."""
