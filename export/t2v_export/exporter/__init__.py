"""The exporter: from a checkpoint to a verified bundle."""
