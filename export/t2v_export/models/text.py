"""Text encoders: token ids and mask to a condition vector."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2v_edge.spec import StageSpec
from t2v_export.models.contract import text_spec
from t2v_export.models.encoder import open_encoder
from t2v_export.models.recurrent import make_cell

POOLINGS = ("mean", "cls", "attention")
# Large enough to silence a masked token, small enough for float16, which ends at 65504.
MASKED = -1e4


class Pooling(nn.Module):
    """Token states and mask to one vector: `mean`, `cls` (the first token), or `attention`.

    Attention: each of `queries` learned vectors weighs the tokens by a softmax of scaled products, and the
    weighted means are concatenated. (batch, tokens, width), (batch, tokens) -> (batch, queries * width).
    """

    def __init__(self, kind: str, width: int, queries: int = 1) -> None:
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"pooling {kind!r} is not one of {', '.join(POOLINGS)}")
        if queries < 1 or (queries > 1 and kind != "attention"):
            raise ValueError(f"queries {queries}: 1 or more with pooling 'attention', else 1")
        self.kind, self.size, self.scale = kind, queries * width, 1 / math.sqrt(width)
        self.queries = nn.Parameter(torch.randn(queries, width) / math.sqrt(width)) if kind == "attention" else None

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.kind == "cls":
            return states[:, 0]
        present = mask.to(states.dtype)
        if self.queries is None:
            return (states * present[:, :, None]).sum(1) / present.sum(1, keepdim=True)
        scores = states @ self.queries.t() * self.scale + (1 - present[:, :, None]) * MASKED
        return (scores.softmax(1).transpose(1, 2) @ states).flatten(1)


class TextHead(nn.Module):
    """A vector to the condition: a linear layer, and a softmax over each of `groups` where they are given."""

    def __init__(self, inputs: int, condition_size: int, groups: Sequence[int] | None) -> None:
        super().__init__()
        if groups is not None and (min(groups, default=0) < 1 or sum(groups) != condition_size):
            raise ValueError(f"groups {list(groups)} must be positive and sum to condition_size {condition_size}")
        self.groups = list(groups) if groups is not None else None
        self.linear = nn.Linear(inputs, condition_size)

    def logits(self, pooled: Tensor) -> Tensor:
        """Before the softmax; with no groups, the condition itself."""
        made: Tensor = self.linear(pooled)
        return made

    def forward(self, pooled: Tensor) -> Tensor:
        made = self.logits(pooled)
        if self.groups is None:
            return made
        return torch.cat([part.softmax(1) for part in made.split(self.groups, dim=1)], dim=1)


class PooledText(nn.Module):
    """A text stage: captions pooled to a vector, then a head that makes the condition."""

    head: TextHead

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens) int64 twice -> (batch, width of the head's input)."""
        raise NotImplementedError

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, condition_size) before the groups' softmax: what a loss for training takes."""
        return self.head.logits(self.pooled(input_ids, attention_mask))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens) int64 twice -> condition (batch, condition_size)."""
        condition: Tensor = self.head(self.pooled(input_ids, attention_mask))
        return condition


class TransformersText(PooledText):
    """Any encoder that transformers' AutoModel opens from `folder`, pooled and projected to the condition.

    Options: `tokens`, captions' padded length; `pooling` mean, cls or attention with `queries` learned queries;
    `groups`, sizes that sum to condition_size: each group's logits go through a softmax, and the condition is
    their concatenation. Of an encoder-decoder the encoder is taken, of a two-tower model the text tower. Code
    in the folder is never run, see `open_encoder`. `encoder/head.safetensors` holds the rest of this module's weights.
    """

    loads_itself = ("encoder.",)

    def __init__(
        self,
        *,
        condition_size: int,
        folder: Path | str,
        tokens: int = 32,
        pooling: str = "mean",
        queries: int = 1,
        groups: Sequence[int] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        encoder, prefix = open_encoder(Path(folder))
        longest = getattr(encoder.config, "max_position_embeddings", None)
        if isinstance(longest, int) and 0 < longest < tokens:
            raise ValueError(f"tokens {tokens}: the encoder has positions for {longest}")
        options = {"tokens": tokens, "pooling": pooling, "queries": queries, "groups": groups}
        self._assemble(encoder, prefix, condition_size, options)

    def _assemble(self, encoder: Any, prefix: str, condition_size: int, options: Mapping[str, Any]) -> None:
        self.spec: StageSpec = text_spec(options["tokens"], condition_size)
        self.encoder: Any = encoder  # a transformers model
        self.prefix = prefix
        self.pooling = Pooling(options["pooling"], encoder.config.hidden_size, options["queries"])
        self.head = TextHead(self.pooling.size, condition_size, options["groups"])

    def resized(self, settings: Mapping[str, Any], options: Mapping[str, Any]) -> TransformersText:
        """An encoder of the same class with some `settings` changed, and these options; all weights are fresh."""
        config = copy.deepcopy(self.encoder.config)
        for name, value in settings.items():
            setattr(config, name, value)
        encoder = type(self.encoder)._from_config(config, attn_implementation="eager")
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        made = type(self).__new__(type(self))
        nn.Module.__init__(made)
        made._assemble(encoder.eval(), self.prefix, self.spec.results[0].shape[1], options)
        return made

    def save_encoder(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The encoder's config.json and weights as transformers reads them back (encoders and text towers alone)."""
        settings = json.loads(self.encoder.config.to_json_string())
        settings.pop("_name_or_path", None)
        settings["architectures"] = [type(self.encoder).__name__]
        return settings, {self.prefix + name: tensor for name, tensor in self.encoder.state_dict().items()}

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens) int64 twice -> (batch, queries * width)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vector: Tensor = self.pooling(states, attention_mask)
        return vector


class ConvText(PooledText):
    """A convolutional text encoder: embedding, convolutions of several widths, maximum over tokens (Kim, 2014).

    Options: `vocabulary` size, `tokens`, `embedding` width, `filters` for each of `kernels`, `groups`.
    TFGAN (Balaji et al., 2019) conditions its video generator on such an encoder.
    """

    def __init__(
        self,
        *,
        condition_size: int,
        vocabulary: int,
        tokens: int = 32,
        embedding: int = 128,
        filters: int = 128,
        kernels: Sequence[int] = (1, 3, 5),
        groups: Sequence[int] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if not kernels or any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernels {list(kernels)} must be odd widths")
        self.spec: StageSpec = text_spec(tokens, condition_size)
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.convs = nn.ModuleList(nn.Conv1d(embedding, filters, kernel, padding=kernel // 2) for kernel in kernels)
        self.head = TextHead(filters * len(kernels), condition_size, groups)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens) int64 twice -> (batch, filters * kernels), none of it from padding."""
        present = attention_mask[:, None, :].to(self.embedding.weight.dtype)
        x = self.embedding(input_ids).transpose(1, 2) * present
        return torch.cat([(conv(x).relu() * present).max(2).values for conv in self.convs], dim=1)


class RecurrentText(PooledText):
    """A GRU or LSTM read over the caption, unrolled: its state after the last token is the caption.

    Options: `vocabulary` size, `tokens`, `embedding` width, `hidden`, `cell` gru or lstm, `groups`.
    """

    def __init__(
        self,
        *,
        condition_size: int,
        vocabulary: int,
        tokens: int = 32,
        embedding: int = 128,
        hidden: int = 128,
        cell: str = "gru",
        groups: Sequence[int] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.spec: StageSpec = text_spec(tokens, condition_size)
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.cell = make_cell(cell, embedding, hidden)
        self.head = TextHead(hidden, condition_size, groups)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens) int64 twice -> (batch, hidden); padding leaves the state as it was."""
        x = self.embedding(input_ids)
        size = x.shape[0], self.cell.hidden_size
        states: tuple[Tensor, ...] = tuple(x.new_zeros(size) for _ in range(self.cell.states))
        for i in range(x.shape[1]):
            present = attention_mask[:, i : i + 1].to(x.dtype)
            states = tuple(old + present * (new - old) for old, new in zip(states, self.cell.step(x[:, i], states)))
        return states[0]
