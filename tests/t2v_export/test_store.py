"""The store of finished passes: its user's alone, and it removes nothing that it did not make."""

from __future__ import annotations

import stat

from t2v_export import store
from t2v_export.store import PassStore, content_key

FILES = {"one": b"1", "inner/two": b"22"}


def test_a_result_comes_back_and_is_its_users_alone_under_every_umask(tmp_path, umask):
    kept = PassStore(tmp_path)
    key = content_key(name="pass")
    for _ in range(2):
        kept.save(key, FILES)
        assert kept.load(key) == FILES
    kept.workplace(key)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_room_is_made_by_removing_results_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MAX_BYTES", 3)
    for name in ("thesis", "f" * 31, "f" * 33):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("a person's")
    kept = PassStore(tmp_path)
    keys = [content_key(number=number) for number in range(3)]
    for key in keys:
        kept.save(key, FILES)
    assert [kept.load(key) for key in keys] == [None, None, FILES]
    assert len(list(tmp_path.rglob("notes.txt"))) == 3
