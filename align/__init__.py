"""ALIGN, end to end: noisy web pairs in; a measured, registered and searchable dual encoder out.

Each stage is a folder with a module per verb, such as `align/filter/filter.py`; `align/verbs.py` lists the verbs. What
stages share is in the other folders, which say in their `__init__` what may come in; what starts them is in `flows/`.
Beside them lie only the command line and what any folder may need.
"""
