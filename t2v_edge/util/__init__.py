"""Small tools that know nothing of video: files, caches, JSON, timing, memory."""
