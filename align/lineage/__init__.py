"""Lineage: where a pair came from and went, what differs between two versions or runs, take-downs.

This is the one folder above the stages that reads from all of them. So a question about several stages' files belongs
here, and what a single stage asks does not. It starts no stage. The rooms:

    trace, take_down, diff     each with the verb that it is for; they do not know each other
    runs                       `align compare`, and what `align runs` lists
    versions                   versions of the data and of models, which all of them read
"""
