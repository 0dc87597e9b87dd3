"""``t2v-edge bench``: a benchmark of a bundle, or with ``--live`` of a live server."""
