"""What an image/alt-text pair is made of: its text, its picture, its address, as all stages use them.

What can be said of these alone comes in, and so does the one decoder with the processes that confine it. Which pairs
are kept is the filter's to say, and files of pairs are in `formats/`.
"""
