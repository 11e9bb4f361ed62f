"""Models in other people's formats, both ways: transformers, ONNX, programs of torch."""
