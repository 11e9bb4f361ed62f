"""Models in other people's formats, both ways: transformers, open_clip, ONNX.

A format that another tool reads or writes comes in, with a test that both compute the same. MLflow's is `packaging/`.
"""
