"""Engines are kept by all that they hold for: what is not exactly that is made again, and never loaded."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t2v_edge.engine.tensorrt.cache import EngineCache

KEY = {
    "engine": "tensorrt",
    "version": "8.6.2",
    "gpu": "Orin",
    "compute_capability": "8.7",
    "driver": "540.2.0",
    "graph_sha256": "0" * 64,
    "precision": "fp16",
    "settings": {"batch": 1, "tactic_sources": None},
}
ENGINE = bytes(range(256)) * 40


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path)


def entry(cache):
    return next(cache.folder.glob("*.engine"))


def test_an_engine_comes_back_as_it_was_kept(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, ENGINE)
    assert cache.get(KEY) == ENGINE


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": "Orin NX"},
        {"driver": "540.3.0"},
        {"version": "8.6.1"},
        {"compute_capability": "8.6"},
        {"precision": "fp32"},
        {"graph_sha256": "1" * 64},
        {"settings": {"batch": 4, "tactic_sources": None}},
    ],
    ids=str,
)
def test_an_engine_of_anything_else_is_not_taken(cache, change):
    cache.put(KEY, ENGINE)
    assert cache.get({**KEY, **change}) is None
    # nor where its file is put in the other's place
    os.replace(entry(cache), cache._path({**KEY, **change}))
    assert cache.get({**KEY, **change}) is None


@pytest.mark.parametrize("tenth", range(10))
def test_a_truncated_engine_is_made_again(cache, tenth):
    cache.put(KEY, ENGINE)
    data = entry(cache).read_bytes()
    entry(cache).write_bytes(data[: len(data) * tenth // 10])
    assert cache.get_or_make(KEY, lambda: b"made again") == (b"made again", False)
    assert cache.get(KEY) == b"made again"


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, len(ENGINE) + 500), change=st.integers(1, 255))
@example(place=241, change=45)  # a space of the header becomes another
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, place, change):
    cache = EngineCache(tmp_path_factory.mktemp("cache"))
    cache.put(KEY, ENGINE)
    data = bytearray(entry(cache).read_bytes())
    data[place % len(data)] ^= change
    entry(cache).write_bytes(data)
    assert cache.get(KEY) is None


def test_longer_files_and_headers_that_claim_too_much_are_refused(cache):
    cache.put(KEY, ENGINE)
    whole = entry(cache).read_bytes()
    for data in (whole + b"x", whole[:8] + b"\xff\xff\xff\xff" + whole[12:], b"T2VENGIN"):
        entry(cache).write_bytes(data)
        assert cache.get(KEY) is None


@pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")
def test_a_file_that_others_may_write_or_a_link_is_not_taken(cache, tmp_path):
    cache.put(KEY, ENGINE)
    path = entry(cache)
    path.chmod(0o666)
    assert cache.get(KEY) is None
    path.chmod(0o600)
    assert cache.get(KEY) == ENGINE
    elsewhere = tmp_path / "elsewhere"
    os.replace(path, elsewhere)
    path.symlink_to(elsewhere)
    assert cache.get(KEY) is None


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_the_folder_is_the_user_s_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("T2V_EDGE_CACHE", str(tmp_path / "cache"))
    folder = EngineCache.of_user().folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_a_folder_everything_is_made_and_nothing_kept():
    cache = EngineCache(None)
    cache.put(KEY, ENGINE)
    assert cache.get(KEY) is None
    assert cache.get_or_make(KEY, lambda: ENGINE) == (ENGINE, False)


def test_a_build_that_fails_leaves_nothing(cache):
    def fail():
        raise RuntimeError("no such tactic")

    with pytest.raises(RuntimeError, match="no such tactic"):
        cache.get_or_make(KEY, fail)
    assert not list(cache.folder.glob("*.engine")) and cache.get_or_make(KEY, lambda: ENGINE) == (ENGINE, False)


def _build(folder, log, crash):
    def make():
        with Path(log).open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        if crash:
            os._exit(1)
        return ENGINE

    found, _ = EngineCache(Path(folder)).get_or_make(KEY, make)
    assert found == ENGINE


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
@pytest.mark.parametrize("first_dies", [False, True])
def test_of_processes_that_want_an_engine_at_once_one_builds_it(tmp_path, first_dies):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    processes = [context.Process(target=_build, args=(tmp_path, log, first_dies))]
    processes[0].start()
    while not log.exists():
        time.sleep(0.01)
    processes += [context.Process(target=_build, args=(tmp_path, log, False)) for _ in range(2)]
    for process in processes[1:]:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [int(first_dies), 0, 0]
    assert log.read_text().count("made") == 1 + first_dies


def test_an_engine_is_kept_under_every_umask(tmp_path, umask):
    cache = EngineCache(tmp_path)
    made = []
    for _ in range(3):
        assert cache.get_or_make(KEY, lambda: made.append(1) or ENGINE)[0] == ENGINE
    assert len(made) == 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_an_entry_that_the_group_may_write_is_made_again_once(cache):
    cache.put(KEY, ENGINE)
    entry(cache).chmod(0o664)
    made = []
    for _ in range(3):
        cache.get_or_make(KEY, lambda: made.append(1) or ENGINE)
    assert len(made) == 1
