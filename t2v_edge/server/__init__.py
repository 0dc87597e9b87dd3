"""The live server: captions in, frames out, over WebSockets (docs/protocol.md). Needs the ``[serve]`` extra."""
