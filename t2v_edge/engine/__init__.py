"""Inference engines, one a module; each is imported only when it is asked for."""
