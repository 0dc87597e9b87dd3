"""A critic of pairs of neighbouring frames: it judges patches (Isola et al., CVPR 2017), by hinge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2v_export.compress.distill.training import adamw, set_rate

WIDTHS = (32, 64, 128)
CROP = 128


class PairCritic:
    """A network that tells the teacher's pairs of frames from the student's.

    Pairs come as all first frames, then all second frames. The critic sees one crop of them; `move` draws another.
    """

    def __init__(self, device: torch.device, height: int, width: int) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((6, *WIDTHS), WIDTHS):
            layers += [nn.utils.spectral_norm(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))
        self.network = nn.Sequential(*layers).to(device)
        self.optimizer = adamw(self.network.parameters(), 1e-4, device, betas=(0.0, 0.99))
        self.sides = height, width
        self._rows, self._columns = (torch.arange(min(CROP, side), device=device) for side in self.sides)

    def set_rate(self, rate: float) -> None:
        set_rate(self.optimizer, rate)

    def move(self, generator: torch.Generator) -> None:
        """Draw another crop."""
        for places, side in zip((self._rows, self._columns), self.sides):
            room = max(0, side - CROP) + 1
            first = torch.randint(room, (1,), generator=generator, device=generator.device)
            places.copy_(torch.arange(len(places), device=places.device) + first)

    def _pairs(self, frames: Tensor) -> Tensor:
        pairs = torch.cat(frames.chunk(2), 1)
        return pairs.index_select(2, self._rows).index_select(3, self._columns)

    def judge(self, made: Tensor) -> Tensor:
        """The loss of the student: minus the critic's mean score of its pairs."""
        self.network.requires_grad_(False)
        loss: Tensor = -self.network(self._pairs(made)).mean()
        return loss

    def learn(self, made: Tensor, wanted: Tensor) -> Tensor:
        """One update of the critic; its loss."""
        self.network.requires_grad_(True)
        real, fake = self.network(self._pairs(wanted)), self.network(self._pairs(made))
        loss = functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def resume(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
