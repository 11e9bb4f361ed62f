"""Training: the tokenizer, pre-training and fine-tuning, and all that only they use.

In come shards, a tokenizer and a recipe; out come a model folder, its curves, and checkpoints on the way. `plan`
settles a run, `train` carries it out and has the loop, `step` the gradients, `loss` the loss. What makes a batch is in
`batches/`, what processes tell each other in `ranks/`. What an embedding needs is in `align.model`: nobody needs this
folder to use a model.
"""
