"""Errors of the toolchain, besides those of t2v_edge."""

from __future__ import annotations

from t2v_edge.errors import T2VError


class AccuracyError(T2VError):
    """A graph is further from torch than its precision allows. The command line exits with 3."""

    exit_code = 3


class TrainingError(T2VError):
    """A training diverged, or its saved state cannot be read."""
