"""A user's own stage class, `module:Class`, from a file in the checkpoint's folder."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path

from torch import nn

from t2v_edge.errors import CheckpointError

_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*):([A-Za-z_][A-Za-z0-9_]*)")


def load_user_class(stage: str, reference: str, code: Path | None) -> type[nn.Module]:
    """Import `module.py` of folder `code` under a private name and return its class.

    The folder is not put on `sys.path`, so the file shadows nothing and imports only installed packages. Importing runs
    the file: `code` is None unless the user gave --allow-code. Raises `CheckpointError`.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise CheckpointError(f"stage {stage}: class {reference!r} is not module:Class, two plain Python names")
    if code is None:
        raise CheckpointError(
            f"stage {stage}: class {reference!r} is Python code of the checkpoint's own and would be run; "
            "read it, and pass --allow-code if you trust it"
        )
    path = code / f"{match[1]}.py"
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"stage {stage}: class {reference!r} needs a plain file {path.name} next to config.json")
    source = path.read_bytes()
    name = f"_t2v_user_{match[1]}_{hashlib.sha256(source).hexdigest()[:16]}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickling look their module up by name
        try:
            exec(compile(source, str(path), "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[name]
            said = f"stage {stage}: importing {path.name} failed: {error!r}; correct the file"
            raise CheckpointError(said) from error
    found = getattr(module, match[2], None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise CheckpointError(f"stage {stage}: {path.name} has no torch.nn.Module class {match[2]!r}")
    return found
