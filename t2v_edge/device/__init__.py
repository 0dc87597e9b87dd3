"""The device: profiles, what this system has, its power rails, and an estimate of speed."""
