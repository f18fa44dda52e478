"""The noise scale as a run estimates it, beside the exact one from every single sample's gradient.

    python benchmarks/noise_scale.py [mlp convnet charlm] --out noise_scale.json

Three small nets at two points of training each. The exact value takes the gradient of every sample of the
data (`torch.func`: vmap of grad), without bias: trace = their variance, square = |mean|^2 - trace / N. The
estimate comes from the product's own probe, repeated with several seeds. Prints a line for each seed, and how
many intervals held the truth; `--out` keeps every sum. Data: the folder named by AUTOTUNE_DATA.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from real_workloads import data_root
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from torchvision import datasets

from autotune import Workload
from autotune.codec import encode
from autotune.measure.inprocess import InProcessRunner
from autotune.measure.seam import GradientSpec
from autotune.recipe.noise_scale import GradientStats, noise_scale

BATCH = 32
CHUNK = 256


def sgd(params: Any) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


class ConvNet(nn.Module):
    """Two small convolutions for 28x28 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of ten classes."""
        return self.body(x)


class CharLM(nn.Module):
    """A causal convolution over embedded characters; a sample is a sequence."""

    def __init__(self, vocabulary: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Conv1d(width, 2 * width, 4)
        self.head = nn.Linear(2 * width, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the next character, classes second."""
        mixed = self.mix(nn.functional.pad(self.embed(x).transpose(1, 2), (3, 0)))
        return self.head(torch.relu(mixed).transpose(1, 2)).transpose(1, 2)


def mlp() -> tuple[nn.Module, TensorDataset]:
    """A table of 32 columns whose class depends on some of them, with noise in the labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8192, 32, generator=generator)
    score = x[:, 0] * x[:, 1] + x[:, 2] + 0.7 * torch.randn(8192, generator=generator)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 2))
    return net, TensorDataset(x, (score > 0).long())


def convnet() -> tuple[nn.Module, TensorDataset]:
    """8,192 digits of MNIST."""
    digits = datasets.MNIST(str(data_root()), train=True)
    return ConvNet(), TensorDataset(digits.data[:8192, None].float() / 255, digits.targets[:8192])


def charlm() -> tuple[nn.Module, TensorDataset]:
    """8,192 sequences of 33 characters of Shakespeare."""
    text = (data_root() / "text" / "tinyshakespeare.txt").read_text()[: 8192 * 33]
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    rows = torch.tensor([letters[letter] for letter in text]).view(-1, 33)
    return CharLM(len(letters)), TensorDataset(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


NETS: dict[str, Callable[[], tuple[nn.Module, TensorDataset]]] = {
    "mlp": mlp,
    "convnet": convnet,
    "charlm": charlm,
}


def train(model: nn.Module, data: TensorDataset, steps: int) -> None:
    """So many steps in random batches."""
    optimizer, generator = sgd(model.parameters()), torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(0, len(data), (BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(data.tensors[0][chosen]), data.tensors[1][chosen]).backward()
        optimizer.step()


def exact(model: nn.Module, data: TensorDataset) -> float:
    """The noise scale of what the data was drawn from, from the gradient of every sample."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    of_each = vmap(grad(loss), in_dims=(None, 0, 0))
    count, squares, total = len(data), 0.0, None
    for start in range(0, count, CHUNK):
        x, y = (tensor[start : start + CHUNK] for tensor in data.tensors)
        flat = torch.cat([g.flatten(1) for g in of_each(weights, x, y).values()], dim=1).double()
        squares += float(flat.square().sum())
        total = flat.sum(0) if total is None else total + flat.sum(0)
    assert total is not None, "there is data"
    mean_square = float((total / count).square().sum())
    trace = (squares - count * mean_square) / (count - 1)
    return trace / (mean_square - trace / count)


def compare(name: str, trained: int, *, repeats: int, micro_batches: int, steps: int) -> dict[str, Any]:
    """Estimates with several seeds beside the exact value, for one net at one point."""
    torch.manual_seed(0)
    model, data = NETS[name]()
    train(model, data, trained)
    truth = exact(model, data)
    runner = InProcessRunner(Workload(model, data, loss=cross_entropy, optimizer=sgd, batch_size=BATCH))
    yours, runs = runner.describe().yours, []
    for seed in range(repeats):
        spec = GradientSpec(
            settings=yours,
            micro_batches=micro_batches,
            steps=steps,
            seed=seed,
        )
        stats = runner.probe_gradients(spec)
        assert isinstance(stats, GradientStats), stats
        found = noise_scale(stats)
        assert found is not None, stats.refused
        inside = found.low <= truth and (found.high is None or truth <= found.high)
        runs.append({"seed": seed, "inside": inside, "stats": encode(stats), "found": encode(found)})
        mark = "inside" if inside else "OUTSIDE"
        below = "under" if found.lower_bound <= truth else "OVER"
        print(
            f"{name:8} {trained:4} steps  exact {truth:7.0f}  estimate {found.in_words():50} {mark:7}  "
            f"lower bound {found.lower_bound:6.0f} {below} it  {stats.wall_s:.1f} s",
            flush=True,
        )
    return {"net": name, "trained_steps": trained, "exact": truth, "batch": BATCH, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nets", nargs="*", choices=list(NETS), default=list(NETS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trained", type=int, nargs=2, default=[0, 200], help="the two points of training")
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--out", type=Path, help="where raw data goes, as JSON; cases already there stay")
    options = parser.parse_args()
    started = time.perf_counter()
    cases = [
        compare(name, at, repeats=options.repeats, micro_batches=options.micro_batches, steps=options.steps)
        for name in options.nets
        for at in options.trained
    ]
    inside = sum(run["inside"] for case in cases for run in case["runs"])
    of = sum(len(case["runs"]) for case in cases)
    print(f"{inside} of {of} intervals hold the exact value; {time.perf_counter() - started:.0f} s")
    if options.out is not None:
        known = json.loads(options.out.read_text()) if options.out.exists() else []
        fresh = {case["net"] for case in cases}
        kept = [case for case in known if case["net"] not in fresh]
        options.out.write_text(json.dumps(kept + cases) + "\n")


if __name__ == "__main__":
    main()
