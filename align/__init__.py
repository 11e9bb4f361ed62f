"""ALIGN, end to end: noisy web pairs in; a measured, registered and searchable dual encoder out.

`align/*.py` are the verbs (the stages of dvc.yaml, then commands); the folders are the parts they are made of.
"""
