"""Exported networks in ONNX files."""
