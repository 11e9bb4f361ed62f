"""Fine-tuning the image tower for classification (paper section 4.3), which a suite may ask of a set.

In come pictures with labels and a model; out come the answers of the tuned one. It shares no code with `training/`: a
classifier is thrown away once it has answered.
"""
