"""The tiny checkpoints of the toolchain's tests."""

from tests.t2v_export.conftest import make_checkpoint

__all__ = ["make_checkpoint"]
