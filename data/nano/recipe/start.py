"""Writes the checkpoint that the training starts from: the tokenizer, the sizes, and random weights.

    python data/nano/recipe/start.py --output start --seed 0

A token is one character, so the model learns to read letter by letter; the texts that frame every question are one token each,
so a prompt is hardly longer than its image. Other text goes through bytes.
"""

import argparse
import io
from pathlib import Path

import sentencepiece
import torch
from questions import ALL_QUESTIONS

from yivl_core.model.random_checkpoint import MARKERS, TOKENIZER_SETTINGS, RandomShape, write_random_checkpoint
from yivl_core.processing.prompt import STOP_STRING, SYSTEM_PROMPT

CHARACTERS = "".join(map(chr, range(ord(" "), ord("~") + 1)))
FRAME = (STOP_STRING, SYSTEM_PROMPT, " Human: ", " Assistant:", "\n", *ALL_QUESTIONS)
_NUM_CONTROLS, _NUM_BYTES = 3, 256
VOCAB_SIZE = _NUM_CONTROLS + len(MARKERS) + len(FRAME) + _NUM_BYTES + len(CHARACTERS)
# The tower's last layer is never run, as in every Yi-VL: the feature is the output of the last but one.
SHAPE = RandomShape(
    hidden_size=256,
    intermediate_size=696,
    num_layers=5,
    num_heads=4,
    num_key_value_heads=2,
    vision_hidden_size=256,
    vision_num_layers=7,
    vision_num_heads=4,
    image_size=280,
    patch_size=20,
    max_positions=2048,
    vocab_size=VOCAB_SIZE,
)


def train_tokenizer() -> bytes:
    """A SentencePiece model of single characters, Yi's markers, and the frame."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b", *CHARACTERS.replace(" ", "")]),
        model_writer=model,
        model_type="char",
        vocab_size=VOCAB_SIZE,
        user_defined_symbols=[*MARKERS, *(text.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}") for text in FRAME)],
        **TOKENIZER_SETTINGS,
    )
    return model.getvalue()


def write_start(output: Path, seed: int, shape: RandomShape = SHAPE) -> None:
    """Write the checkpoint folder; tower and all in bfloat16."""
    write_random_checkpoint(output, seed=seed, shape=shape, vision_dtype=torch.bfloat16, tokenizer_model=train_tokenizer())


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description="Write the checkpoint that the training starts from.")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    options = parser.parse_args(arguments)
    write_start(options.output, options.seed)


if __name__ == "__main__":
    main()
