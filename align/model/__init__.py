"""What an embedding needs: the two towers, preprocessing, the tokenizer, and the embedder that combines them.

Parts of a tower that only training runs stay with it, since they are methods of the same modules: stochastic depth,
gradient checkpointing, the backward passes of batch-norm and depthwise convolution, and the estimation of batch-norm's
statistics.
"""
