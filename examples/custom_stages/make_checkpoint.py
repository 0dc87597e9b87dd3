"""Write a checkpoint of random weights with the stages of an example: `make_checkpoint.py mocogan|tfgan FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from t2v_edge.spec import STAGES
from t2v_export.checkpoint.checkpoint import save_checkpoint
from t2v_export.checkpoint.config import CheckpointConfig, StageConfig
from t2v_export.models import build_stage

HERE = Path(__file__).parent
WORDS = (
    *"a person man woman is walking running dancing jumping playing basketball soccer".split(),
    *"一个人正在打篮球跑步",
)
TEXT_OPTIONS = {"vocabulary": 2 + len(WORDS), "tokens": 16}
EXAMPLES = {
    "mocogan": {
        "text": StageConfig("text-gru", TEXT_OPTIONS),
        "motion": StageConfig("mocogan:CodeMotion", {"content": 8, "categories": 4, "noise": 6}),
        "render": StageConfig("mocogan:ConvTransposeGenerator", {"channels": 8}),
    },
    "tfgan": {
        "text": StageConfig("tfgan:TextCNN", TEXT_OPTIONS),
        "motion": StageConfig("tfgan:LatentMotion", {}),
        "render": StageConfig("tfgan:ResidualGenerator", {"channels": 16}),
    },
}


def word_tokenizer() -> str:
    """A tokenizer.json of `WORDS`: one id a word, one a Chinese character."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # puts spaces around Chinese characters
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    text: str = tokenizer.to_str()
    return text


def make_checkpoint(name: str, folder: Path, size: int = 64, seed: int = 0) -> None:
    """Write the example's checkpoint, `size` pixels square, with weights of this seed."""
    torch.manual_seed(seed)
    config = CheckpointConfig(f"{name}-example", size, size, 16, 12, 24, EXAMPLES[name])
    modules = {
        stage: build_stage(
            stage,
            config.stages[stage].class_name,
            config.stages[stage].options,
            condition_size=config.condition_size,
            motion_size=config.motion_size,
            height=size,
            width=size,
            folder=folder / "encoder",
            code=HERE,
        )
        for stage in STAGES
    }
    source = f"{name}.py"
    save_checkpoint(
        folder,
        config,
        modules,
        tokenizer=word_tokenizer(),
        code={source: (HERE / source).read_text("utf-8")},
        card=f"# {name} example\n\nRandom weights; see examples/custom_stages.\n",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(EXAMPLES))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    make_checkpoint(args.name, args.folder)
    print(f"wrote {args.folder}")


if __name__ == "__main__":
    main()
