"""`t2v-edge compare`: the same captions, seeds and noise through every variant of a bundle and its FP32, measured."""
