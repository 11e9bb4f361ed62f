"""Fine-tuning the image tower for classification (paper section 4.3): recipes, the loop, the classifier."""
