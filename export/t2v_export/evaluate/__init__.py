"""Evaluation: captions played through a bundle, and what an evaluator reads in the frames."""
