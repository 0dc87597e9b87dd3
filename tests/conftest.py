"""What all tests share: a cache folder of their own, so that no test reads or fills the user's."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; torch reads this when it is imported
    WORKERS = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

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
