"""Live streams: frames when they are due, from captions that change at any time."""
