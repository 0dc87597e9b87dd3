"""The doctor: what works on a machine, what does not, and what to type."""
