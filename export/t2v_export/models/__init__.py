"""Built-in stage architectures by name, and how a stage is built from a checkpoint's config."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2v_edge.errors import CheckpointError, SpecError
from t2v_edge.spec import StageSpec
from t2v_export.models.encoder import MAX_WEIGHTS
from t2v_export.models.user_code import load_user_class

BUILT_IN: dict[str, dict[str, str]] = {
    "text": {
        "transformers": "t2v_export.models.text:TransformersText",
        "text-cnn": "t2v_export.models.text:ConvText",
        "text-gru": "t2v_export.models.text:RecurrentText",
    },
    "motion": {
        "recurrent": "t2v_export.models.recurrent:RecurrentMotion",
        "skeletal": "t2v_export.models.skeletal:SkeletalMotion",
    },
    "render": {
        "upsample": "t2v_export.models.upsample:UpsampleRenderer",
        "pose": "t2v_export.models.pose:PoseRenderer",
    },
}


def stage_class(stage: str, class_name: str, *, code: Path | None = None) -> type[nn.Module]:
    """The class that `class_name` means for a stage: a built-in, or `module:Class` from folder `code`.

    `code` is the folder user modules may be imported from; None refuses them. Raises `CheckpointError`.
    """
    built_in = BUILT_IN[stage]
    if class_name in built_in:
        module, _, name = built_in[class_name].partition(":")
        found: type[nn.Module] = getattr(importlib.import_module(module), name)
        return found
    if ":" in class_name:
        return load_user_class(stage, class_name, code)
    raise CheckpointError(
        f"stage {stage}: unknown class {class_name!r}; use one of {', '.join(built_in)}, or module:Class of "
        "a file next to config.json"
    )


def build_stage(
    stage: str,
    class_name: str,
    options: Mapping[str, Any],
    *,
    condition_size: int,
    motion_size: int,
    height: int,
    width: int,
    folder: Path | None = None,
    code: Path | None = None,
) -> nn.Module:
    """Make a stage's module with fresh weights (a text stage loads its own encoder weights from `folder`).

    The module's `spec` is checked to be a `StageSpec` of this stage. Raises `CheckpointError` for an unknown
    class, option or value, `SpecError` for a broken contract.
    """
    found = stage_class(stage, class_name, code=code)
    shared: dict[str, Any] = {"condition_size": condition_size, "motion_size": motion_size}
    shared |= {"height": height, "width": width}
    if stage == "text":
        shared["folder"] = folder
    # `**_` of a class swallows the shared keywords, not misspellings
    parameters = inspect.signature(found.__init__).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    allowed = sorted(named - set(shared) - {"self", "folder"})
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise CheckpointError(
            f"stage {stage}: class {class_name!r} has no option {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(allowed) or 'none'}"
        )
    try:
        if class_name in BUILT_IN[stage] and class_name != "transformers":
            # count without allocating: a config must not be able to exhaust the memory
            with torch.device("meta"):
                weights = sum(tensor.numel() for tensor in found(**shared, **options).state_dict().values())
            if weights > MAX_WEIGHTS:
                raise CheckpointError(
                    f"stage {stage}: its options make {weights} weights, at most {MAX_WEIGHTS} are allowed; lower them "
                    "in config.json"
                )
        module = found(**shared, **options)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"stage {stage}: class {class_name!r} refuses its options: {error}; correct them in config.json"
        ) from error
    spec = getattr(module, "spec", None)
    if not isinstance(module, nn.Module) or not isinstance(spec, StageSpec):
        raise SpecError(f"stage {stage}: class {class_name!r} must be a torch.nn.Module with a StageSpec as `spec`")
    if spec.stage != stage:
        raise SpecError(
            f"stage {stage}: class {class_name!r} says it is a {spec.stage} stage; name it under {spec.stage!r} "
            "in config.json"
        )
    return module
