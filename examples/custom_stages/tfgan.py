"""Stages in the style of TFGAN (Balaji et al., IJCAI 2019), written from scratch for this example.

A convolutional text encoder conditions a GRU, which unrolls latent vectors; a residual generator without
normalisation upsamples each to a frame. (TFGAN's contribution, filters made from text, is in its discriminator,
which does not travel with a checkpoint.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2v_edge.spec import NoiseSpec, StageSpec, StateSpec
from t2v_export.models.contract import motion_spec, render_spec, text_spec


class TextCNN(nn.Module):
    """Embedding, one convolution over words, maximum over time, a linear layer."""

    def __init__(
        self, *, condition_size: int, folder: object, vocabulary: int, tokens: int = 16, features: int = 24, **_: object
    ) -> None:
        super().__init__()  # all weights are in encoder/head.safetensors, so `folder` is not needed
        self.spec: StageSpec = text_spec(tokens, condition_size)
        self.embedding = nn.Embedding(vocabulary, features)
        self.conv = nn.Conv1d(features, features, 3, padding=1)
        self.linear = nn.Linear(features, condition_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        present = attention_mask[:, None].to(self.embedding.weight.dtype)
        words = functional.relu(self.conv(self.embedding(input_ids).transpose(1, 2) * present)) * present
        condition: Tensor = self.linear(words.max(dim=2).values)
        return condition


class LatentMotion(nn.Module):
    """One GRU step over the condition and a noise drawn once a stream; the hidden state is the motion."""

    def __init__(self, *, condition_size: int, motion_size: int, noise: int = 8, **_: object) -> None:
        super().__init__()
        self.cell = nn.GRUCell(condition_size + noise, motion_size)
        self.spec: StageSpec = motion_spec(
            condition_size, motion_size, [NoiseSpec("content", (1, noise))], [StateSpec("latent", (1, motion_size))]
        )

    def forward(self, condition: Tensor, content: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        following = self.cell(torch.cat([condition, content], dim=1), latent)
        return following, following


class UpResidual(nn.Module):
    """Resize, two convolutions, and the resized input beside them; no normalisation."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        larger = functional.interpolate(functional.relu(x), scale_factor=2.0, mode="nearest")
        beside = functional.interpolate(self.skip(x), scale_factor=2.0, mode="nearest")
        made: Tensor = self.second(functional.relu(self.first(larger))) + beside
        return made


class ResidualGenerator(nn.Module):
    """motion and condition -> frame in 0..1."""

    pixel_range = "0..1"

    def __init__(
        self, *, condition_size: int, motion_size: int, height: int, width: int, channels: int = 16, **_: object
    ) -> None:
        super().__init__()
        doublings = (height // 4).bit_length() - 1
        if height != width or height != 4 << doublings:
            raise ValueError(f"{width}x{height} is not a power-of-two square of 8 or more")
        self.spec: StageSpec = render_spec(condition_size, motion_size, height, width)
        self.channels = channels
        self.stem = nn.Linear(motion_size + condition_size, 16 * channels)
        self.blocks = nn.Sequential(*(UpResidual(channels, channels) for _ in range(doublings)))
        self.to_rgb = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, motion: Tensor, condition: Tensor) -> Tensor:
        small = self.stem(torch.cat([motion, condition], dim=1)).reshape(-1, self.channels, 4, 4)
        return torch.sigmoid(self.to_rgb(functional.relu(self.blocks(small))))
