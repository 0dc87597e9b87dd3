"""Upsampling renderers: a linear stem, then blocks that each double the size.

Norm is BatchNorm directly behind a convolution, and folds into it. Upsampling is resize and convolution, transposed
convolution (DCGAN, Radford et al., 2016), or convolution and pixel shuffle (Shi et al., 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t2v_edge.spec import NoiseSpec, StageSpec
from t2v_export.models.contract import render_spec

MODES = ("resize", "transpose", "pixel_shuffle")
PIXEL_RANGES = ("-1..1", "0..1")
ENDINGS = ("conv", "shuffle", "transpose")
SQUASHES = ("smooth", "clip")


def make_activation(name: str) -> nn.Module:
    """relu, leaky_relu (slope 0.2), silu, or none; raises ValueError for another."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "leaky_relu": lambda: nn.LeakyReLU(0.2),
        "silu": nn.SiLU,
        "none": nn.Identity,
    }
    if name not in makers:
        raise ValueError(f"activation {name!r} is not one of {', '.join(makers)}")
    return makers[name]()


def double(in_channels: int, out_channels: int, mode: str, bias: bool) -> nn.Sequential:
    """Layers that double height and width: (batch, in, h, w) -> (batch, out, 2h, 2w)."""
    if mode == "resize":
        return nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        )
    if mode == "transpose":
        return nn.Sequential(nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=bias))
    if mode == "pixel_shuffle":
        return nn.Sequential(nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1, bias=bias), nn.PixelShuffle(2))
    raise ValueError(f"upsample {mode!r} is not one of {', '.join(MODES)}")


class UpBlock(nn.Module):
    """Double the size: upsampling convolution, norm, activation; (batch, in, h, w) -> (batch, out, 2h, 2w).

    With `residual`, a second 3x3 convolution follows. A 1x1 convolution of the input, resized, is added before the last
    activation (TFGAN, Balaji et al., 2019, without its conditional norm).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mode: str = "resize",
        norm: bool = True,
        activation: str = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.up = double(in_channels, out_channels, mode, bias=not norm)
        self.norm = nn.BatchNorm2d(out_channels) if norm else nn.Identity()
        self.activation = make_activation(activation)
        self.skip: nn.Sequential | None = None
        self.second: nn.Sequential | None = None
        if residual:
            second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=not norm)
            self.second = nn.Sequential(second, *([nn.BatchNorm2d(out_channels)] if norm else []))
            # 1x1 convolution and nearest resize commute: convolving first costs a quarter
            resize = nn.Upsample(scale_factor=2, mode="nearest")
            self.skip = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), resize)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias` (batch, out, 1, 1), where given, is added before the first activation."""
        normed: Tensor = self.norm(self.up(x))
        made: Tensor = self.activation(normed if bias is None else normed + bias)
        if self.second is not None and self.skip is not None:
            made = self.activation(self.second(made) + self.skip(x))
        return made


class ClippedLinear(nn.Module):
    """The line that touches tanh, or of `pixel_range` 0..1 the sigmoid in the middle, cut off at the ends of the range.

    In training the gradient passes the ends as well: a pixel beyond one learns to come back.
    """

    def __init__(self, pixel_range: str) -> None:
        super().__init__()
        self.signed = pixel_range == "-1..1"

    def forward(self, x: Tensor) -> Tensor:
        line, low = (x, -1.0) if self.signed else (0.25 * x + 0.5, 0.0)
        cut = line.clamp(low, 1.0)
        return line + (cut - line).detach() if self.training else cut


class ToPixels(nn.Module):
    """The last convolution and squashing: (batch, in, h, w) -> (batch, 3, h, w) in `pixel_range`.

    kind: "conv"; "shuffle", a pixel shuffle of the convolution's channels; or "transpose", a transposed convolution.
    The last two double height and width, so nothing is convolved at the size of the frame. squash: "smooth", tanh or
    sigmoid; or "clip", a `ClippedLinear`, where the convolution gives the pixels and INT8 ends on their own 256 levels.
    """

    def __init__(
        self, in_channels: int, pixel_range: str = "-1..1", kernel: int = 3, kind: str = "conv", squash: str = "smooth"
    ) -> None:
        super().__init__()
        chosen = ("squash", squash, SQUASHES), ("pixel_range", pixel_range, PIXEL_RANGES), ("ending", kind, ENDINGS)
        for what, value, known in chosen:
            if value not in known:
                raise ValueError(f"{what} {value!r} is not one of {', '.join(known)}")
        if kind == "transpose":
            self.conv: nn.Module = nn.ConvTranspose2d(in_channels, 3, 4, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(in_channels, 12 if kind == "shuffle" else 3, kernel, padding=kernel // 2)
        self.shuffle = nn.PixelShuffle(2) if kind == "shuffle" else nn.Identity()
        smooth = nn.Tanh() if pixel_range == "-1..1" else nn.Sigmoid()
        self.squash = ClippedLinear(pixel_range) if squash == "clip" else smooth

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # bfloat16 has fewer levels near 1 than a pixel
            with torch.autocast(x.device.type, enabled=False):
                return self._pixels(x.float())
        return self._pixels(x)

    def _pixels(self, x: Tensor) -> Tensor:
        squashed: Tensor = self.shuffle(self.squash(self.conv(x)))
        return squashed


class Stem(nn.Module):
    """A vector to a small image: (batch, in) -> (batch, channels, height, width)."""

    def __init__(
        self, inputs: int, channels: int, height: int, width: int, norm: bool = True, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.shape = channels, height, width
        self.linear = nn.Linear(inputs, channels * height * width)
        # over the flat vector, so that it folds into the linear layer
        self.norm = nn.BatchNorm1d(channels * height * width) if norm else nn.Identity()
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.activation(self.norm(self.linear(x)))
        return made.reshape(-1, *self.shape)


class UpsampleRenderer(nn.Module):
    """A frame from motion, condition and, where `noise_size` is given, a content code drawn once a stream.

    Options: `channels`, the widths of the last levels (earlier ones have the first width); `upsample` resize,
    transpose or pixel_shuffle; `residual`, `norm`, `activation` of the blocks; `noise_size`; `pixel_range`
    -1..1 (tanh) or 0..1 (sigmoid); `squash` as in `ToPixels`; `stem`, the short side of the first level, a power of two
    (1: as a generator that starts from 1x1). Sizes are stem x a power of two, such as 128x128 or 64x128.
    """

    def __init__(
        self,
        *,
        condition_size: int,
        motion_size: int,
        height: int,
        width: int,
        channels: Sequence[int] = (256, 128, 64, 32),
        upsample: str = "resize",
        residual: bool = False,
        norm: bool = True,
        activation: str = "relu",
        noise_size: int = 0,
        pixel_range: str = "-1..1",
        squash: str = "smooth",
        stem: int = 4,
        **_: Any,
    ) -> None:
        super().__init__()
        blocks = (min(height, width) // stem).bit_length() - 1 if stem > 0 else -1
        if blocks < 1 or height % (1 << blocks) or width % (1 << blocks) or min(height, width) != stem << blocks:
            raise ValueError(
                f"a {width}x{height} frame is not a stem of {stem} doubled some times; use a power-of-two size"
            )
        if not 1 <= len(channels) <= blocks + 1 or min(channels) < 1:
            raise ValueError(
                f"channels {list(channels)} must be 1 to {blocks + 1} positive widths for {width}x{height}"
            )
        widths = [channels[0]] * (blocks + 1 - len(channels)) + list(channels)
        self.pixel_range = pixel_range
        self.options_in_full = {"channels": widths}
        noises = (NoiseSpec("content", (1, noise_size)),) if noise_size else ()
        self.spec: StageSpec = render_spec(condition_size, motion_size, height, width, noises)
        inputs, sides = motion_size + condition_size + noise_size, (height >> blocks, width >> blocks)
        self.stem = Stem(inputs, widths[0], *sides, norm, activation)
        pairs = zip(widths, widths[1:])
        self.blocks = nn.Sequential(*(UpBlock(*pair, upsample, norm, activation, residual) for pair in pairs))
        self.to_pixels = ToPixels(widths[-1], pixel_range, squash=squash)

    def forward(self, motion: Tensor, condition: Tensor, *noises: Tensor) -> Tensor:
        """motion (batch, M), condition (batch, C), noises -> image (batch, 3, H, W) in `pixel_range`."""
        image: Tensor = self.to_pixels(self.blocks(self.stem(torch.cat([motion, condition, *noises], dim=1))))
        return image
