"""A critic of pairs of neighbouring frames: it judges patches (Isola et al., CVPR 2017), by hinge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (32, 64, 128)
CROP = 128


class PairCritic:
    """Tells the teacher's pairs of frames from the student's; both come as all first frames, then all second ones."""

    def __init__(self, device: torch.device) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((6, *WIDTHS), WIDTHS):
            layers += [nn.utils.spectral_norm(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))
        self.network = nn.Sequential(*layers).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, betas=(0.0, 0.99))
        self._crop = (0, 0)

    def _pairs(self, frames: Tensor) -> Tensor:
        pairs = torch.cat(frames.chunk(2), 1)
        top, left = self._crop
        return pairs[:, :, top : top + CROP, left : left + CROP]

    def judge(self, made: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
        """What the student has to lower; chooses the crop that `learn` sees as well."""
        height, width = wanted.shape[2:]
        places = torch.rand(2, generator=generator, device=generator.device).tolist()
        self._crop = tuple(int(p * max(0, side - CROP)) for p, side in zip(places, (height, width)))  # type: ignore[assignment]
        self.network.requires_grad_(False)
        return -self.network(self._pairs(made)).mean()

    def learn(self, made: Tensor, wanted: Tensor, rate: float) -> Tensor:
        """One update of the critic; its loss."""
        self.network.requires_grad_(True)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        real, fake = self.network(self._pairs(wanted)), self.network(self._pairs(made))
        loss = functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def resume(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
