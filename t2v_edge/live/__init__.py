"""Live streams: each frame when it is due, from captions that change at any time."""
