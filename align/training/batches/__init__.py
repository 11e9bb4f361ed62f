"""What makes a batch: which samples, where they lie, who reads and decodes them, and the copy to a GPU.

In come an index of shards, a recipe's numbers and a tokenizer; out come batches, each a pure function of its step. The
model, the loss and other ranks have no place here.
"""
