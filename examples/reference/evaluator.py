"""The evaluator: a small video classifier that reads from two seconds of video what a caption could have named.

It is trained on renders of the training clips only (`train_evaluator.py`), and is never a loss of the generator. FP32
and compressed variants are compared by it. Judging text faithfulness by attribute classifiers follows TFGAN (Balaji et
al., IJCAI 2019).

The folder ``evaluator/`` of a checkpoint holds `evaluator.json` (labels, input, measured validation),
`evaluator.safetensors` (float16) and `evaluator.onnx` (batch 1, so that it runs without torch). ``python -m
examples.reference.evaluator DIR`` makes the ONNX file and the plots from the other two. That is for machines that
trained without onnx or matplotlib.
"""

from __future__ import annotations

import argparse
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from examples.reference.vocabulary import SLOTS
from t2v_edge.errors import CheckpointError
from t2v_edge.util.files import write_atomic
from t2v_edge.util.targets import SCRIPT_FILE

FORMAT, FORMAT_VERSION = "t2v-evaluator", 1
CHANNELS = (24, 48, 96, 128, 128)
ONNX_OPSET = 17


@dataclass(frozen=True)
class EvaluatorConfig:
    """What the evaluator reads: `frames` at `fps`, `size` pixels square, and the values of each slot.

    `size` is a multiple of 32. Larger frames are brought to `size` by area averaging, whole and undistorted.
    """

    frames: int = 16
    fps: int = 8
    size: int = 128
    slots: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(SLOTS))

    @property
    def logits(self) -> int:
        return sum(len(values) for values in self.slots.values())


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _temporal(inputs: int, outputs: int, dilation: int) -> nn.Sequential:
    conv = nn.Conv1d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(outputs), nn.ReLU())


class VideoEvaluator(nn.Module):
    """Reads every slot from a video.

    Each frame goes through strided convolutions. The look is read from features pooled over each frame and averaged
    over time. The action is read from dilated convolutions over time on the spatial features, where the pose is
    visible.
    """

    def __init__(self, config: EvaluatorConfig = EvaluatorConfig(), pose: int = 96, temporal: int = 128) -> None:
        super().__init__()
        if config.size % 32:
            raise CheckpointError(f"evaluator size {config.size} is not a multiple of 32: choose 64, 96 or 128")
        self.config = config
        widths = (3, *CHANNELS)
        blocks = [_conv(a, b) for a, b in zip(widths[:-1], widths[1:])]
        self.near, self.far = nn.Sequential(*blocks[:4]), blocks[4]
        self.pose = nn.Linear(CHANNELS[4] * (config.size // 32) ** 2, pose)
        self.temporal = nn.Sequential(
            _temporal(pose, temporal, 1), _temporal(temporal, temporal, 2), _temporal(temporal, temporal, 4)
        )
        self.action = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * temporal, len(config.slots["action"])))
        looks = config.logits - len(config.slots["action"])
        self.look = nn.Sequential(
            nn.Linear(2 * CHANNELS[3] + pose, 96), nn.ReLU(), nn.Dropout(0.1), nn.Linear(96, looks)
        )

    def forward(self, video: Tensor) -> Tensor:
        """Video (n, frames, 3, size, size), uint8 or float 0..1 RGB -> logits (n, slots' values, action first)."""
        n, frames = video.shape[:2]
        pixels = video.flatten(0, 1)
        pixels = pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels * 2 - 1
        near = self.near(pixels)
        pose = torch.relu(self.pose(self.far(near).flatten(1)))
        look = torch.cat([near.mean((2, 3)), near.amax((2, 3)), pose], 1).reshape(n, frames, -1).mean(1)
        time = self.temporal(pose.reshape(n, frames, -1).transpose(1, 2))
        action = self.action(torch.cat([time.mean(2), time.amax(2)], 1))
        return torch.cat([action, self.look(look)], 1).float()

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        """Logits (n, all) -> one (n, values) tensor a slot."""
        parts = logits.split([len(values) for values in self.config.slots.values()], 1)
        return dict(zip(self.config.slots, parts))

    @torch.no_grad()
    def read(self, video: Tensor) -> Tensor:
        """The value read for each slot: indices int64 (n, slots)."""
        return torch.stack([part.argmax(1) for part in self.split(self(video)).values()], 1)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode(), SCRIPT_FILE)


def save_evaluator(folder: Path, model: VideoEvaluator, **measured: Any) -> None:
    """Write `evaluator.safetensors` and `evaluator.json`; `measured` (validation, training...) is kept in the JSON."""
    half = {
        k: v.detach().cpu().half().contiguous() if v.is_floating_point() else v.detach().cpu().contiguous()
        for k, v in model.state_dict().items()
    }
    write_atomic(folder / "evaluator.safetensors", save(half, metadata={"format": FORMAT}), SCRIPT_FILE)
    write_json(folder / "evaluator.json", describe(model) | measured)


def describe(model: VideoEvaluator) -> dict[str, Any]:
    """The evaluator's JSON without measurements: labels, input, output."""
    config = model.config
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **asdict(config),
        "input": {
            "name": "video",
            "dtype": "uint8",
            "shape": [1, config.frames, 3, config.size, config.size],
            "colours": "RGB, full range",
            "resize": "area",
        },
        "output": {"name": "logits", "shape": [1, config.logits], "layout": "the values of each slot, in order"},
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def read_description(folder: Path) -> dict[str, Any]:
    """Parsed `evaluator.json`; raises `CheckpointError` where it is absent or of another format."""
    path = folder / "evaluator.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        remedy = "train one with examples.reference.train_evaluator"
        raise CheckpointError(f"cannot read {path}: {error}; {remedy}") from error
    if data.get("format") != FORMAT or data.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path} is not {FORMAT} version {FORMAT_VERSION}; train it again with this version")
    return data


def load_evaluator(folder: Path) -> VideoEvaluator:
    """The trained evaluator in float32, in evaluation mode; raises `CheckpointError`."""
    data = read_description(folder)
    slots = {slot: tuple(values) for slot, values in data["slots"].items()}
    model = VideoEvaluator(EvaluatorConfig(data["frames"], data["fps"], data["size"], slots))
    try:
        model.load_state_dict(load_file(folder / "evaluator.safetensors"))
    except Exception as error:
        raise CheckpointError(f"evaluator weights in {folder} do not fit evaluator.json: {error}") from error
    return model.float().eval()


def write_onnx(folder: Path) -> Path:
    """Write `evaluator.onnx` (uint8 ``video`` -> float32 ``logits``, batch 1) from the saved weights."""
    model = load_evaluator(folder)
    config = model.config
    video = torch.zeros(1, config.frames, 3, config.size, config.size, dtype=torch.uint8)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (video,),
            buffer,
            input_names=["video"],
            output_names=["logits"],
            opset_version=ONNX_OPSET,
            dynamo=False,
        )
    path = folder / "evaluator.onnx"
    write_atomic(path, buffer.getvalue(), SCRIPT_FILE)
    return path


def write_plots(folder: Path) -> list[Path]:
    """Write `curves.png` from `train.jsonl` and `confusion.png` from the validation, where matplotlib is there."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written: list[Path] = []

    def keep(figure: Any, name: str) -> None:
        buffer = io.BytesIO()
        figure.tight_layout()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        write_atomic(folder / name, buffer.getvalue(), SCRIPT_FILE)
        written.append(folder / name)

    log = folder / "train.jsonl"
    if log.exists():
        rows = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.strip()]
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
        losses = [row for row in rows if "loss" in row]
        left.plot([row["step"] for row in losses], [row["loss"] for row in losses])
        left.set(xlabel="step", ylabel="training loss", yscale="log")
        for slot in SLOTS:
            points = [(row["step"], row["heldout"][slot]) for row in rows if "heldout" in row]
            right.plot([p[0] for p in points], [p[1] for p in points], label=slot)
        right.set(xlabel="step", ylabel="accuracy on held-out clips", ylim=(0, 1.02))
        right.legend(fontsize=7)
        keep(figure, "curves.png")
    confusion = read_description(folder).get("validation", {}).get("confusion")
    if confusion:
        actions = read_description(folder)["slots"]["action"]
        figure, axes = plt.subplots(figsize=(7, 6.4))
        axes.imshow([[v / max(1, sum(row)) for v in row] for row in confusion], cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(confusion):
            for j, count in enumerate(row):
                if count:
                    axes.text(j, i, count, ha="center", va="center", fontsize=6)
        axes.set_xticks(range(len(actions)), actions, rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(actions)), actions, fontsize=7)
        axes.set(xlabel="read", ylabel="shown", title="Held-out real clips, rendered")
        keep(figure, "confusion.png")
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make evaluator.onnx and the plots from a trained evaluator folder.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    for path in [write_onnx(folder), *write_plots(folder)]:
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
