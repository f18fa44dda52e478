"""A small transformer that learns to write like a text: batches are dicts, the loss is its own.

python examples/char_lm.py --text FILE        # any text file
python examples/char_lm.py --data DIR         # DIR/text/tinyshakespeare.txt
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

import autotune


class Windows(Dataset):
    """All windows of `length` characters: {"tokens", "targets"}, both int64 of shape (length,)."""

    def __init__(self, tokens: torch.Tensor, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return max(0, len(self.tokens) - self.length)

    def __getitem__(self, start: int) -> dict[str, torch.Tensor]:
        window = self.tokens[start : start + self.length + 1]
        return {"tokens": window[:-1], "targets": window[1:]}


class Transformer(nn.Module):
    """Predicts each next character: (N, T) int64 to (N, T, vocabulary)."""

    def __init__(self, vocabulary: int, length: int, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        self.register_buffer("future", future, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, not looking ahead."""
        length = tokens.shape[1]
        x = self.embed(tokens) + self.position[:length]
        return self.head(self.blocks(x, mask=self.future[:length, :length], is_causal=True))


def next_character_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What autotune calls a step: from a model and a batch to a loss."""
    return cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01)


@torch.no_grad()
def write(model: Transformer, start: torch.Tensor, count: int) -> torch.Tensor:
    """`start` and `count` characters that the model writes after it, as tokens."""
    length = model.position.shape[0]
    tokens = start[None].to(model.position.device)
    for _ in range(count):
        chances = model(tokens[:, -length:])[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1)], dim=1)
    return tokens[0].cpu()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("AUTOTUNE_DATA", "data"))
    parser.add_argument(
        "--text", type=Path, default=None, help="a text; DATA/text/tinyshakespeare.txt without"
    )
    parser.add_argument("--length", type=int, default=64, help="characters in a window")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300, help="steps to train with what was found")
    parser.add_argument("--budget", default="3m", help="time that find_best may take")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; the accelerator where there is one")
    args = parser.parse_args()
    args.text = args.text or Path(args.data) / "text" / "tinyshakespeare.txt"
    if not args.text.is_file():
        parser.error(f"there is no text at {args.text}: name one with --text")
    return args


def main() -> None:
    args = arguments()
    text = args.text.read_text(encoding="utf-8")
    letters = sorted(set(text))
    number = {letter: i for i, letter in enumerate(letters)}
    windows = Windows(torch.tensor([number[letter] for letter in text]), args.length)

    torch.manual_seed(0)
    model = Transformer(len(letters), args.length)
    best = autotune.find_best(
        model,
        windows,
        step=next_character_loss,
        optimizer=adamw,
        batch_size=args.batch_size,
        device=args.device,
        budget=args.budget,
    )
    print(best)

    loader = best.loader(windows)
    batches = chain.from_iterable(repeat(loader))  # epoch after epoch
    with best.kit(model, adamw) as kit:
        started = time.perf_counter()
        for done, batch in enumerate(islice(batches, args.steps), 1):
            loss = kit.step(batch)
            if done == 1 or done % 50 == 0 or done == args.steps:
                per_s = kit.samples_seen / (time.perf_counter() - started)
                print(f"step {done:>4}  loss {loss.item():.3f}  {per_s:,.0f} samples/s", flush=True)
    written = write(model.eval(), windows.tokens[:1], 300)
    print("".join(letters[i] for i in written.tolist()))


if __name__ == "__main__":
    main()
