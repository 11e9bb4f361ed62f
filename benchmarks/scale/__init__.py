"""How time, memory and disk grow with the number of pairs, and what the paper's number of pairs would cost."""
