"""The critic of the frame generator: is this a real drawing, and is it of this look?

It has two scales of patch critics (pix2pixHD, Wang et al., 2018) with spectral norm (Miyato et al., 2018) and no
instance norm. Each has a projection of the look (Miyato and Koyama, 2018). It is trained on matching pairs, as TFGAN
and its forerunners are: a real frame with somebody else's look counts as fake.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .vocabulary import LOOK_SIZE


class PatchCritic(nn.Module):
    """Frames (n, 3, S, S) in [-1, 1] and looks (n, 29) -> scores (n, 1, S/16, S/16) and the features of each layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [3, width, width * 2, width * 4, width * 8]
        self.layers = nn.ModuleList(spectral_norm(nn.Conv2d(i, o, 4, 2, 1)) for i, o in zip(widths, widths[1:]))
        self.score = spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))
        self.look = spectral_norm(nn.Linear(LOOK_SIZE, widths[-1], bias=False))

    def forward(self, frames: Tensor, look: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.layers:
            frames = F.leaky_relu(layer(frames), 0.2)
            features.append(frames)
        matching = (frames * self.look(look)[:, :, None, None]).mean(1, keepdim=True)
        return self.score(frames) + matching, features


class Discriminator(nn.Module):
    """Frames (n, 3, 256, 256) in [0, 1] -> a score map and features at full and at half size."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.critics = nn.ModuleList(PatchCritic(width) for _ in range(2))

    def forward(self, frames: Tensor, look: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        frames = frames * 2 - 1
        scores, features = [], []
        for critic in self.critics:
            score, seen = critic(frames, look)
            scores.append(score)
            features += seen
            frames = F.avg_pool2d(frames, 2)
        return scores, features


def critic_loss(real: list[Tensor], fake: list[Tensor], mismatched: list[Tensor]) -> Tensor:
    """Hinge loss; the mismatched pairs count half as much as the generated frames."""
    loss = torch.zeros((), device=real[0].device)
    for r, f, m in zip(real, fake, mismatched):
        loss = loss + F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean() + 0.5 * F.relu(1 + m.float()).mean()
    return loss


def feature_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Feature matching, each layer relative to the real features' size."""
    parts = [
        (r.detach().float() - f.float()).abs().mean() / (r.detach().float().abs().mean() + 1e-6)
        for r, f in zip(real, fake)
    ]
    return torch.stack(parts).mean()
