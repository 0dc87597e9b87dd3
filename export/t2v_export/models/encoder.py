"""A transformers encoder from a folder that is not trusted. Transformers itself reads no file of the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2v_edge.errors import CheckpointError
from t2v_export.weights.folder import needed_file
from t2v_export.weights.tensors import read_weights

MAX_CONFIG_BYTES = 1 << 20
MAX_NUMBER = 1 << 24
"""The largest whole number in an encoder's settings. Bases of rotary positions (theta) may be larger."""
MAX_LAYERS = 512
MAX_WEIGHTS = 1 << 29
"""Of a stage: an ONNX file without external data ends at 2 GiB."""
STEMS = ("model", "pytorch_model")
"""Names of weights files that `save_pretrained` writes, without their suffixes."""
_REFUSED = ("auto_map", "quantization_config")
_IGNORED = ("_name_or_path", "transformers_weights", "use_kernels")
_IGNORED_ENDS = (
    *("_implementation", "_implementation_internal", "_implementation_autoset"),
    *("kernel_config", "fusion_config", "distributed_config"),
)


def open_encoder(folder: Path) -> tuple[nn.Module, str]:
    """A transformers encoder in float32 with plain ("eager") attention, and its weights' prefix in the file.

    Of the folder only config.json and the weights are read: safetensors, in one file or in shards, or a plain
    state_dict. Settings that choose kernels or name files are ignored. Raises `CheckpointError` if the folder asks for
    code, a file lies outside it, or weights are absent or not finite.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    folder = folder.absolute()
    settings = _read_settings(folder)
    found = [read_weights(folder.parent, f"{folder.name}/{stem}") for stem in STEMS]
    weights = next((one for one in found if one is not None), None)
    if weights is None:
        raise CheckpointError(
            f"{folder.name}/{STEMS[0]}.safetensors is missing; save the encoder there with save_pretrained"
        )
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its report of missing weights names the unused pooler; ours follows
    logging.disable_progress_bar()
    try:
        config = type(AutoConfig.for_model(settings.pop("model_type"))).from_dict(settings)
        with torch.device("meta"):  # its class and size, without its memory
            empty = AutoModel.from_config(config, attn_implementation="eager")
        size = sum(tensor.numel() for tensor in empty.state_dict().values())
        if size > MAX_WEIGHTS:
            raise ValueError(f"its settings make {size} weights, at most {MAX_WEIGHTS} are allowed")
        model, loading = type(empty).from_pretrained(
            None,
            config=config,
            state_dict=weights,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds; each means that this folder does not open
        raise CheckpointError(f"{folder.name}/ does not open with transformers: {error}; save it again") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    prefix = ""
    if all(isinstance(getattr(model, part, None), nn.Module) for part in ("encoder", "decoder")):
        model, prefix = model.get_encoder(), "encoder."
    elif getattr(model, "text_model", None) is not None:
        model, prefix = model.text_model, "text_model."
    # The pooler is not used; its weights are often random, and unused weights only grow a checkpoint.
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    kept = {prefix + name for name, _ in model.named_parameters()}
    wrong = sorted(kept & set(loading["missing_keys"])) or sorted(str(key) for key in loading["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{folder.name}/{STEMS[0]}.safetensors: {len(wrong)} weights are missing or of another shape, first "
            f"{wrong[0]}; config.json must be the one it was trained with"
        )
    encoder: nn.Module = model.eval()
    return encoder, prefix


def _read_settings(folder: Path) -> dict[str, Any]:
    """The encoder's config.json without what is ignored. Raises `CheckpointError`."""
    shown = f"{folder.name}/config.json"
    path = needed_file(folder.parent, shown, MAX_CONFIG_BYTES, "save the encoder with save_pretrained")
    try:
        settings = _plain(json.loads(path.read_text("utf-8")), shown)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown} cannot be read: {error}; save the encoder with save_pretrained") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise CheckpointError(f"{shown} has no model_type; save the encoder with save_pretrained")
    return settings


def _plain(value: Any, shown: str, name: str = "") -> Any:
    if isinstance(value, dict):
        for refused in _REFUSED:
            if refused in value:
                raise CheckpointError(f"{shown} has {refused!r}, which runs other code; save a plain float encoder")
        kept = {k: v for k, v in value.items() if k not in _IGNORED and not k.endswith(_IGNORED_ENDS)}
        return {key: _plain(inner, shown, key) for key, inner in kept.items()}
    if isinstance(value, list):
        return [_plain(inner, shown, name) for inner in value]
    most = MAX_LAYERS if "layers" in name else MAX_NUMBER
    if isinstance(value, int) and abs(value) > most and "theta" not in name:
        raise CheckpointError(f"{shown}: {name} is {value}, at most {most} is allowed; is it the right file?")
    return value
