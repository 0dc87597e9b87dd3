"""What benchmarks on processors and GPUs share."""
