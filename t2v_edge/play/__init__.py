"""Playing: the clock, the recurrent rollout, and streams of frames."""
