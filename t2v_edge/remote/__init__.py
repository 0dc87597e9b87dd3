"""The wire protocol of the live server, and its clients."""
