"""The live benchmark: captions through a server and back as frames, measured at the client."""
