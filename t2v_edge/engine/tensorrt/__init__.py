"""TensorRT: engines built on this machine, proved, kept in a cache, and run."""
