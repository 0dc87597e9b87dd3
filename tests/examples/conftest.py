"""The tiny bundle of the runtime's tests."""

from __future__ import annotations

import pytest

from tests.t2v_edge.conftest import make_tiny


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory):
    return make_tiny().write(tmp_path_factory.mktemp("tiny") / "bundle")
