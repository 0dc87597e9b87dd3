"""The reference model's renderer: it draws a person from a pose before a known camera.

Besides the usual linear stem, the network gets maps of the limbs, as pose-conditioned image generators do (Ma et al.,
2017; Chan et al., "Everybody Dance Now", 2019). Each bone has a Gaussian of the distance to its segment on the screen,
and the same weighted with depth, which shows what hides what. The maps are computed inside the graph, from plain
element-wise operators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t2v_edge.spec import NoiseSpec, StageSpec
from t2v_export.models.contract import render_spec
from t2v_export.models.upsample import Stem, ToPixels, UpBlock

BEYOND = -1e4
"""Added to the logit of what is not there: within float16, and nothing after a softmax."""


class SharpenGroups(nn.Module):
    """Choices for what the caption left open: groups of probabilities -> nearly one-hot weights.

    In each group of K, the probabilities are squared and normalised. Where they are uniform, the caption named nothing,
    and noise of the stream decides. The noise is faded by K min(p). So a blend of two captions cross-fades, and noise
    never overrules what a caption names.

    forward: probabilities (batch, sum of groups), normal noise of the same shape -> weights of the same shape.
    """

    rows: Tensor
    back: Tensor
    beyond: Tensor
    sizes: Tensor

    def __init__(self, groups: Sequence[int], noise_gain: float = 30.0) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.noise_gain = noise_gain
        # All groups are settled at once, a row each, as long as the longest: a GPU takes as long for one small operator
        # as for a large one. What a row lacks repeats its first place, which leaves its minimum, and weighs nothing.
        size = max(self.groups)
        starts = [sum(self.groups[:i]) for i in range(len(self.groups))]
        rows = [[start + (i if i < count else 0) for i in range(size)] for start, count in zip(starts, self.groups)]
        beyond = [[0.0 if i < count else BEYOND for i in range(size)] for count in self.groups]
        back = [row * size + i for row, count in enumerate(self.groups) for i in range(count)]
        for name, value in (
            ("rows", torch.tensor(rows).flatten()),
            ("back", torch.tensor(back)),
            ("beyond", torch.tensor(beyond)),
            ("sizes", torch.tensor(self.groups)[:, None].float()),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, probability: Tensor, noise: Tensor) -> Tensor:
        p, n = (x.index_select(1, self.rows).reshape(-1, *self.beyond.shape) for x in (probability, noise))
        open_share = p.amin(2, keepdim=True).clamp(0.0, 1.0) * self.sizes
        logits = 2.0 * torch.log(p.clamp(min=0.0) + 1e-3) + self.noise_gain * open_share * n + self.beyond
        return torch.softmax(logits, 2).flatten(1).index_select(1, self.back)


class LimbMaps(nn.Module):
    """Maps of limbs and props on the screen, made from the motion vector.

    `layout` describes the motion vector: `joints` (start, count), `prop` (start) of the prop's two ends, `presence`
    (start, count), `bones` (pairs of joints). `lift` (metres added to y) and `scale` (divides coordinates) give metres.
    `camera` is distance, height, pitch in radians, and focal length in half-images.
    """

    start: Tensor
    end: Tensor
    grid: Tensor

    def __init__(self, layout: Mapping[str, Any], resolution: int, depth: bool, gain: float = 4.0) -> None:
        super().__init__()
        self.layout = dict(layout)
        self.depth = depth
        self.gain = gain
        self.sigma = max(2.4 / resolution, 0.05)
        bones, joints = layout["bones"], layout["joints"][1]
        # the prop's two ends come after the joints, as one more segment
        for number, name in enumerate(("start", "end")):
            ends = torch.tensor([*(bone[number] for bone in bones), joints + number])
            self.register_buffer(name, ends, persistent=False)
        self.channels = len(bones) * (2 if depth else 1) + layout["presence"][1]
        self.register_buffer("grid", (torch.arange(resolution) + 0.5) / resolution * 2 - 1, persistent=False)

    def points(self, motion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joints and the prop's two ends: u, v on the screen in [-1, 1], depth from the hip; all (n, joints + 2)."""
        layout, camera = self.layout, self.layout["camera"]
        first, count = layout["joints"]
        flat = torch.cat([motion[:, first : first + 3 * count], motion[:, layout["prop"] : layout["prop"] + 6]], 1)
        place = flat.reshape(-1, count + 2, 3) / layout["scale"]
        cos, sin = math.cos(camera["pitch"]), math.sin(camera["pitch"])
        y, z = place[..., 1] + (layout["lift"] - camera["height"]), place[..., 2] + camera["distance"]
        depth = z * cos - y * sin
        scale = camera["focal"] / depth
        return place[..., 0] * scale, -(y * cos + z * sin) * scale, depth - camera["distance"]

    def forward(self, motion: Tensor) -> Tensor:
        """Motion (batch, M) -> maps (batch, channels, resolution, resolution)."""
        u, v, depth = self.points(motion)
        au, av, az = (x.index_select(1, self.start)[:, :, None, None] for x in (u, v, depth))
        bu, bv, bz = (x.index_select(1, self.end)[:, :, None, None] for x in (u, v, depth))
        du, dv = bu - au, bv - av
        px, py = self.grid[None, None, None, :], self.grid[None, None, :, None]
        along = ((px - au) * du + (py - av) * dv) / (du * du + dv * dv + 1e-4)
        along = along.clamp(0.0, 1.0)
        off_u, off_v = px - au - along * du, py - av - along * dv
        near = torch.exp((off_u * off_u + off_v * off_v) * (-1.0 / self.sigma**2)) * self.gain
        limbs, prop = near[:, :-1], near[:, -1:]
        first, count = self.layout["presence"]
        maps = [limbs, prop * motion[:, first : first + count, None, None]]
        if self.depth:
            deep = (az + along * (bz - az))[:, :-1]
            maps.append(limbs * (deep * 2.0).clamp(-2.0, 2.0))
        return torch.cat(maps, 1)


class PoseRenderer(nn.Module):
    """A frame from a pose and a look.

    Options: `channels`, widths from the 4x4 stem to the last level, one more than doublings; `upsample` and `residual`
    as in `UpBlock`; `ending` and `squash` as in `ToPixels`, where shuffle and transpose double the size once more;
    `look`, the [start, size] of each group of the condition that describes the look; `layout` as in `LimbMaps`; `maps`,
    sizes of the levels with limb maps; `depth_maps`, of those with depth as well; `map_width`, channels to which a 1x1
    convolution reduces a level's maps, 0 for none; `bias_levels`, sizes of the levels whose block adds a bias made from
    the look.

    The noise ``look``, normal and drawn once a stream, has the summed size of the groups.
    """

    pixel_range = "0..1"
    named: Tensor

    def __init__(
        self,
        *,
        condition_size: int,
        motion_size: int,
        height: int,
        width: int,
        look: Sequence[Sequence[int]],
        layout: Mapping[str, Any],
        channels: Sequence[int] = (256, 320, 256, 160, 96, 48, 32),
        stem_width: int = 512,
        look_width: int = 64,
        maps: Sequence[int] = (16, 32, 64),
        depth_maps: Sequence[int] = (16, 32),
        map_width: int = 0,
        bias_levels: Sequence[int] = (16, 32, 64, 128),
        ending: str = "conv",
        squash: str = "smooth",
        upsample: str = "resize",
        residual: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        side = 4 << (len(channels) - (ending == "conv"))
        if height != width or side != height:
            raise ValueError(
                f"{len(channels)} channels and ending {ending!r} make {side} pixels square, not {width}x{height}"
            )
        self.sizes = condition_size, motion_size, height, width
        self.look = [(int(start), int(size)) for start, size in look]
        groups = [size for _, size in self.look]
        named = [start + i for start, size in self.look for i in range(size)]
        self.register_buffer("named", torch.tensor(named), persistent=False)
        self.choice = SharpenGroups(groups)
        self.embed = nn.Linear(sum(groups), look_width)
        self.mix = nn.Sequential(
            nn.Linear(motion_size + look_width, stem_width), nn.BatchNorm1d(stem_width), nn.LeakyReLU(0.2)
        )
        self.stem = Stem(stem_width, channels[0], 4, 4)
        limb_maps = {str(size): LimbMaps(layout, size, size in depth_maps) for size in maps}
        self.maps = nn.ModuleDict(limb_maps)
        self.squeeze = nn.ModuleDict(
            {size: nn.Sequential(nn.Conv2d(m.channels, map_width, 1), nn.ReLU()) for size, m in limb_maps.items()}
            if map_width
            else {}
        )
        self.blocks = nn.ModuleList()
        self.biases = nn.ModuleDict()
        for level, (inputs, outputs) in enumerate(zip(channels[:-1], channels[1:])):
            size = 4 << level
            extra = (map_width or limb_maps[str(size)].channels) if size in maps else 0
            self.blocks.append(UpBlock(inputs + extra, outputs, upsample, residual=residual))
            if size * 2 in bias_levels:
                self.biases[str(size * 2)] = nn.Linear(sum(groups), outputs)
        self.pixels = ToPixels(channels[-1], self.pixel_range, kind=ending, squash=squash)

    @property
    def spec(self) -> StageSpec:
        condition_size, motion_size, height, width = self.sizes
        noise = NoiseSpec("look", (1, sum(size for _, size in self.look)))
        return render_spec(condition_size, motion_size, height, width, (noise,))

    def forward(self, motion: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        """Motion (batch, M), condition (batch, C), noise (batch, L) -> frames (batch, 3, H, W) in [0, 1]."""
        return self.frame(motion, self.choice(condition.index_select(1, self.named), noise))

    def frame(self, motion: Tensor, look: Tensor) -> Tensor:
        """Motion (batch, M) and a settled look (batch, L) -> frames (batch, 3, H, W) in [0, 1]."""
        x = self.stem(self.mix(torch.cat([motion, self.embed(look)], 1)))
        size = 4
        for block in self.blocks:
            if str(size) in self.maps:
                maps = self.maps[str(size)](motion).to(x.dtype)
                x = torch.cat([x, self.squeeze[str(size)](maps) if self.squeeze else maps], 1)
            size *= 2
            bias = self.biases[str(size)](look)[:, :, None, None] if str(size) in self.biases else None
            x = block(x, bias)
        pixels: Tensor = self.pixels(x)
        return pixels
