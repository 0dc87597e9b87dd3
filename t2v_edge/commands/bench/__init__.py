"""``t2v-edge bench``: of frames, and with ``--live`` of a live server."""
