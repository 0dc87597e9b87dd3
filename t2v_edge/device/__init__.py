"""Devices: their profiles, facts of this system, its power, and estimates of speed."""
