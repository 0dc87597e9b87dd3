"""Weights files: safetensors in and out, checked before anything is computed with them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from t2v_edge.errors import CheckpointError
from t2v_export.weights.folder import MAX_FILES, needed_file, plain_file

MAX_FILE_BYTES = 2 << 30
MAX_HEADER_BYTES = 16 << 20
INDEX = ".index.json"
SUFFIXES = (".safetensors", ".pt", ".bin", f".safetensors{INDEX}", f".bin{INDEX}")
"""Of weights files: safetensors, and a state_dict that torch saved. The last two name shards of these."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.bool, torch.uint8)


def read_weights(root: Path, stem: str) -> dict[str, Tensor] | None:
    """The tensors of `stem` in folder `root`, with a suffix of `SUFFIXES`. Floats become float32. None if it is absent.

    An index names shards, files beside it. Raises `CheckpointError` for a file that is truncated, altered, too large or
    no weights file, for shards outside the folder, and for NaN or infinite weights, which are named.
    """
    found = [suffix for suffix in SUFFIXES if plain_file(root, stem + suffix, MAX_FILE_BYTES) is not None]
    if len(found) > 1:
        raise CheckpointError(f"both {stem}{found[0]} and {stem}{found[1]} are there; remove one")
    if not found:
        return None
    name = stem + found[0]
    tensors = _read_shards(root, name) if name.endswith(INDEX) else _read_file(root, name)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{stem}: weight {name!r} is {tensor.dtype}; save weights as float16, bfloat16 or float32"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{stem}: weight {name!r} holds {bad} NaN or infinite values; training diverged, take an "
                "earlier checkpoint"
            )
    return {name: t.float() if t.dtype in FLOATS else t for name, t in tensors.items()}


def _read_file(root: Path, name: str) -> dict[str, Tensor]:
    path = needed_file(root, name, MAX_FILE_BYTES, "copy the whole checkpoint again")
    return _read_safetensors(path, name) if name.endswith(".safetensors") else _read_pt(path, name)


def _read_shards(root: Path, name: str) -> dict[str, Tensor]:
    """The tensors of the shards that an index names. Each must hold exactly what the index says."""
    damaged = f"{name} is no index of weights; save the model again, or in one file"
    path = needed_file(root, name, MAX_HEADER_BYTES, "copy the whole checkpoint again")
    try:
        places = json.loads(path.read_text("utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(damaged) from error
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(damaged)
    shards = sorted(set(places.values()))
    kind = name.removesuffix(INDEX)[name.rfind(".", 0, -len(INDEX)) :]
    for shard in shards:
        if "/" in shard or "\\" in shard or not shard.endswith(kind):
            raise CheckpointError(f"{name} names {shard[:80]!r}; shards must be {kind} files beside it")
    if len(shards) > MAX_FILES:
        raise CheckpointError(f"{name} names {len(shards)} shards, at most {MAX_FILES} are allowed; save fewer")
    tensors: dict[str, Tensor] = {}
    total = 0
    for shard in shards:
        file = str(Path(name).with_name(shard))
        held = _read_file(root, file)
        total += (root / file).stat().st_size
        if total > MAX_FILE_BYTES:
            raise CheckpointError(f"the shards of {name} have more than {MAX_FILE_BYTES} bytes; is it the right model?")
        if held.keys() != {key for key, where in places.items() if where == shard}:
            raise CheckpointError(f"{file} does not hold the weights that {name} says; copy all shards again")
        tensors.update(held)
    return tensors


def _read_safetensors(path: Path, shown: str) -> dict[str, Tensor]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if header > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{shown} claims a header of {header} bytes, at most {MAX_HEADER_BYTES} are allowed; it is damaged "
            "or no safetensors file"
        )
    if len(start) < 8 or 8 + header > size:
        raise CheckpointError(f"{shown} is truncated: {size} bytes, its header alone needs {8 + header}; copy it again")
    try:
        with safetensors.safe_open(str(path), "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except Exception as error:  # the library raises several kinds, all of which mean a damaged file
        raise CheckpointError(f"{shown} is truncated or damaged: {error}; copy it again") from error
    if "sha256" in metadata and metadata["sha256"] != tensors_sha256(tensors):
        raise CheckpointError(
            f"{shown} was altered: its weights do not match the SHA-256 stored with them; copy it again"
        )
    return tensors


def _read_pt(path: Path, shown: str) -> dict[str, Tensor]:
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling errors, zip errors: none of them is plain weights
        raise CheckpointError(
            f"{shown} is not a plain state_dict and is not unpickled; save it again with "
            "safetensors.torch.save_file(model.state_dict(), ...)"
        ) from error
    if not isinstance(read, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in read.items()):
        raise CheckpointError(f"{shown} must hold a state_dict: a dict of names to tensors; save model.state_dict()")
    return {name: tensor.contiguous() for name, tensor in read.items()}


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def pack_weights(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> bytes:
    """A safetensors file, floats in `dtype`, with a SHA-256 of the weights in its metadata.

    BatchNorm's running statistics stay float32: a variance of a quiet channel does not survive float16.
    Raises `CheckpointError` where a weight is not finite, or not finite in `dtype`.
    """
    packed = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        if tensor.is_floating_point():
            keep = name.endswith(("running_mean", "running_var"))
            tensor = tensor.to(torch.float32 if keep else dtype)
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"weight {name!r} is NaN, infinite, or too large for {dtype}; do not save it, or save as float32"
                )
        packed[name] = tensor.contiguous().clone()
    data: bytes = safetensors.torch.save(packed, {"format": "pt", "sha256": tensors_sha256(packed)})
    return with_metadata(data, {})


def with_metadata(data: bytes, more: Mapping[str, str]) -> bytes:
    """A safetensors file with more metadata, in the order of its names. The library writes them in hash order."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted({**header["__metadata__"], **more}.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], shown: str, skip: tuple[str, ...] = ()) -> None:
    """Copy tensors into a module; names that start with one of `skip` are the module's own business.

    Raises `CheckpointError` naming what is missing, unknown or of another shape.
    """
    wanted = {k: v for k, v in module.state_dict().items() if not (skip and k.startswith(skip))}
    counters = {k for k in wanted if k.endswith("num_batches_tracked")}  # of no use in evaluation, often dropped
    missing = sorted(set(wanted) - set(tensors) - counters)
    unknown = sorted(set(tensors) - set(wanted))
    if missing or unknown:
        named = (("lacks", missing), ("has unknown", unknown))
        said = [f"{what} {', '.join(n[:5])}{' and more' if len(n) > 5 else ''}" for what, n in named if n]
        raise CheckpointError(
            f"{shown} {' and '.join(said)}; the class and options of config.json must be those it was trained with"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{shown}: weight {name!r} has shape {tuple(tensor.shape)}, the class and options of "
                f"config.json want {tuple(wanted[name].shape)}"
            )
    module.load_state_dict(dict(tensors), strict=False)
