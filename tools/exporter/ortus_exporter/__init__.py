"""Turns PyTorch models into ONNX for Ortus; see __main__.py for how it is called."""
