"""What all tests share: a cache folder of their own, so that no test reads or fills the user's."""

from __future__ import annotations

import os

import pytest

from t2v_edge.util.cache import VARIABLE


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ[VARIABLE]
    else:
        os.environ[VARIABLE] = before


@pytest.fixture(params=[0o002, 0o022, 0o077], ids=oct)
def umask(request):
    """The umask of the test: a group's, the usual and a private one."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)
