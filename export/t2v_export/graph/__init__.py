"""ONNX graphs: made from torch, cleaned, rewritten, checked and counted."""
