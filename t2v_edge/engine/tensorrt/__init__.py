"""TensorRT engines: built on this machine, checked, cached and run."""
