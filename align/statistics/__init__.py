"""Figures with their uncertainty, and randomness by key; nothing here reads a file.

chance        what guessing would give
intervals     bootstrap over clusters
paired        the difference of two models on the same items
randomness    numbers that depend on (seed, epoch, position) alone

What several folders compute alike comes in. Which figure is reported, and what it decides, is theirs to say.
"""
