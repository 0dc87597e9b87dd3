"""Stages in the style of MoCoGAN (Tulyakov et al., CVPR 2018), written from scratch for this example.

Motion is a GRU cell over fresh noise at each step; beside its code, a content code and a one-hot category code stay
the same for the whole stream, and all three are the generator's input: here they travel in the motion vector.
The generator is DCGAN's: transposed convolutions, BatchNorm, tanh.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from t2v_edge.spec import NoiseSpec, StageSpec, StateSpec
from t2v_export.models.contract import motion_spec, render_spec


class CodeMotion(nn.Module):
    """One step: [condition, noise] -> GRU cell -> motion code; motion = [motion code, content, category]."""

    def __init__(
        self,
        *,
        condition_size: int,
        motion_size: int,
        content: int = 8,
        categories: int = 4,
        noise: int = 6,
        **_: object,
    ) -> None:
        super().__init__()
        code = motion_size - content - categories
        if code < 1:
            raise ValueError(f"motion_size {motion_size} must exceed content {content} + categories {categories}")
        self.cell = nn.GRUCell(condition_size + noise, code)
        self.spec: StageSpec = motion_spec(
            condition_size,
            motion_size,
            noises=[
                NoiseSpec("content", (1, content), "normal", "stream"),
                NoiseSpec("category", (1, categories), "uniform", "stream"),
                NoiseSpec("motion", (1, noise), "normal", "step"),
            ],
            states=[StateSpec("code", (1, code), "normal")],
        )

    def forward(
        self, condition: Tensor, content: Tensor, category: Tensor, noise: Tensor, code: Tensor
    ) -> tuple[Tensor, Tensor]:
        # the largest of K uniform draws is each of the K with equal chance: a one-hot category
        one_hot = (category == category.max(dim=1, keepdim=True).values).to(category.dtype)
        following = self.cell(torch.cat([condition, noise], dim=1), code)
        return torch.cat([following, content, one_hot], dim=1), following


class ConvTransposeGenerator(nn.Module):
    """motion (content, category and motion codes) -> frame in -1..1, from 1x1 up; the condition goes in beside it."""

    pixel_range = "-1..1"

    def __init__(
        self, *, condition_size: int, motion_size: int, height: int, width: int, channels: int = 16, **_: object
    ) -> None:
        super().__init__()
        doublings = (height // 4).bit_length() - 1
        if height != width or height != 4 << doublings:
            raise ValueError(f"{width}x{height} is not a power-of-two square of 8 or more")
        self.spec: StageSpec = render_spec(condition_size, motion_size, height, width)
        widths = [channels << i for i in range(doublings, -1, -1)]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(motion_size + condition_size, widths[0], 4, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for before, after in zip(widths[:-1], widths[1:-1] + [0]):
            layers += [nn.ConvTranspose2d(before, after or 3, 4, stride=2, padding=1, bias=not after)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()] if after else [nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, motion: Tensor, condition: Tensor) -> Tensor:
        codes = torch.cat([motion, condition], dim=1)
        frame: Tensor = self.layers(codes[:, :, None, None])
        return frame
