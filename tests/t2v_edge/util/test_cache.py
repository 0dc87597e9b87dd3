from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from t2v_edge.util.cache import VARIABLE, cache_folder, cache_root

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders and modes of POSIX systems")


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_is_made_for_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "new" / "cache"))
    folder = cache_folder("things")
    assert folder == tmp_path / "new" / "cache" / "things"
    assert mode_of(folder) == mode_of(folder.parent) == 0o700


def test_a_folder_that_others_may_read_is_closed_to_them(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "things").mkdir(mode=0o755)
    folder = cache_folder("things")
    assert folder is not None and mode_of(folder) == 0o700


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has a folder of its own")
@pytest.mark.parametrize(
    "xdg, expected",
    [
        ("/somewhere/xdg", Path("/somewhere/xdg/t2v-edge")),
        ("relative", Path("/home/she/.cache/t2v-edge")),
        ("", Path("/home/she/.cache/t2v-edge")),
    ],
)
def test_the_root_follows_the_xdg_specification(monkeypatch, xdg, expected):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("HOME", "/home/she")
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache_root() == expected


def test_the_variable_comes_before_the_platform(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/xdg")
    monkeypatch.setenv(VARIABLE, "/mine")
    assert cache_root() == Path("/mine")


def test_where_no_folder_can_be_made_there_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "cache"))
    assert cache_folder("things") is None


def test_the_folder_is_its_users_alone_under_every_umask(tmp_path, monkeypatch, umask):
    shared = tmp_path / "shared"
    shared.mkdir()
    for root in (shared, tmp_path / "new" / "cache"):
        monkeypatch.setenv(VARIABLE, str(root))
        folder = cache_folder("things")
        assert folder is not None and mode_of(folder) == 0o700
    assert mode_of(shared) == 0o777 & ~umask, "the folder that the user named keeps its mode"


def test_a_folder_that_someone_else_put_in_a_shared_root_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "things").mkdir(mode=0o755)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert cache_folder("things") is None and mode_of(tmp_path / "things") == 0o755
