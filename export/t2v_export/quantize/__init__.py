"""INT8: what to quantize, from which ranges, and how much it loses."""
