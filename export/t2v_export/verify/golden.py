"""Golden vectors: inputs and outputs of torch for some captions, for a runtime in any language to check itself."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from t2v_export.verify.reference import FRAME_STEPS, ReferenceRollout

STORED_FRAMES = (0, -1)
"""Indices into `FRAME_STEPS` of the frames in every bundle. Few, because frames are most of the file."""

_TIME = (1980, 1, 1, 0, 0, 0)


def golden_vectors(rollouts: Sequence[ReferenceRollout], seed: int) -> dict[str, NDArray[np.generic]]:
    """Arrays by name.

    Each caption has a row in `captions` (text), `input_ids`, `attention_mask` and `condition`. The other arrays are of
    the first caption, whose stream has this `seed`. `motion.noise.NAME` and `render.noise.NAME` are (1, ...) if drawn
    once, (steps, ...) if drawn at each step. `start.NAME` is each state's start, `next.NAME` (1, ...) each state after
    the last step. `motion` is (steps, M), `frames` uint8 (n, H, W, 3) of the steps in `frame_steps`.
    """
    first = rollouts[0]
    arrays: dict[str, NDArray[np.generic]] = {
        "seed": np.asarray(seed, dtype=np.int64),
        "captions": np.asarray([r.caption for r in rollouts]),
        "input_ids": np.concatenate([r.ids for r in rollouts]),
        "attention_mask": np.concatenate([r.mask for r in rollouts]),
        "condition": np.concatenate([r.condition for r in rollouts]),
        "frame_steps": np.asarray([FRAME_STEPS[i] for i in STORED_FRAMES], dtype=np.int64),
        "frames": np.rint(first.levels[list(STORED_FRAMES)]).astype(np.uint8),
        **{name: value if name == "motion" else value[-1:] for name, value in first.outputs.items()},
    }
    arrays.update({f"motion.{name}": value for name, value in first.draws.motion.items()})
    arrays.update({f"render.{name}": value for name, value in first.draws.render.items()})
    arrays.update({name.replace("state.", "start.", 1): value for name, value in first.draws.states.items()})
    for name in first.draws.steps[0]:
        arrays[f"motion.{name}"] = np.concatenate([step[name] for step in first.draws.steps])
    return arrays


def pack_npz(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """An npz file whose bytes depend on the arrays alone. Names are sorted, times fixed, and nothing is pickled."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _TIME)
            entry.create_system, entry.compress_type = 3, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data.getvalue())
    return buffer.getvalue()
