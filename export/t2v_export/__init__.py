"""The toolchain: trained checkpoints in, verified ONNX bundles out. Needs torch; the runtime does not."""
