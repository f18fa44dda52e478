"""The real workloads that benchmarks are run on, by name.

Data comes from the folder named by AUTOTUNE_DATA: `MNIST/raw` as torchvision lays it out, `clothing/train`
with a folder of photos for each class, `text/tinyshakespeare.txt`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import ConcatDataset, Dataset
from torchvision import datasets, models, transforms

from autotune import Workload

NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PHOTO_REPEATS = 30
"""The folder holds a few hundred photos; repeated, an epoch is as long as one of a real training set."""


def data_root() -> Path:
    """Where the data lies."""
    return Path(os.environ.get("AUTOTUNE_DATA", "data"))


def sgd(params: Any) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(params, lr=0.02, momentum=0.9, weight_decay=1e-4)


def adamw(params: Any) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(params, lr=1e-3)


class ConvNet(nn.Module):
    """Two convolutions and two linear layers for 28x28 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(9216, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (N, 10)."""
        return self.body(x)


def mnist() -> Workload:
    """Digits, read as pictures and normalised one by one, into a small ConvNet."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    digits = datasets.MNIST(data_root(), train=True, download=True, transform=transform)
    return Workload(
        ConvNet(), digits, loss=cross_entropy, optimizer=adamw, batch_size=64, name="mnist-convnet"
    )


def photos(model: nn.Module, *, crop: int, batch_size: int, name: str) -> Workload:
    """JPEG photos, decoded and augmented, into a convolution net."""
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(crop),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            NORMALIZE,
        ]
    )
    folder = datasets.ImageFolder(data_root() / "clothing" / "train", augment)
    many: Dataset[Any] = ConcatDataset([folder] * PHOTO_REPEATS)
    return Workload(
        model, many, loss=cross_entropy, optimizer=sgd, batch_size=batch_size, drop_last=True, name=name
    )


def photos_resnet18_64() -> Workload:
    """ResNet-18 at 64 pixels."""
    return photos(models.resnet18(num_classes=10), crop=64, batch_size=32, name="photos-resnet18-64")


def photos_resnet18_96() -> Workload:
    """ResNet-18 at 96 pixels."""
    return photos(models.resnet18(num_classes=10), crop=96, batch_size=16, name="photos-resnet18-96")


def photos_resnet50() -> Workload:
    """ResNet-50 at 224 pixels: on a GPU, decoding decides."""
    return photos(models.resnet50(num_classes=10), crop=224, batch_size=64, name="photos-resnet50")


class Resident(Dataset[Any]):
    """Pictures that are in memory already."""

    def __init__(self, samples: int, size: int) -> None:
        self.pictures = torch.randn(256, 3, size, size)
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pictures[index % 256], index % 10


def tensors_resnet50() -> Workload:
    """ResNet-50 on tensors in memory: the device decides."""
    return Workload(
        models.resnet50(num_classes=10),
        Resident(20_000, 224),
        loss=cross_entropy,
        optimizer=sgd,
        batch_size=64,
        drop_last=True,
        name="tensors-resnet50",
    )


class Windows(Dataset[Any]):
    """Windows of a text as dicts of int64 tensors of shape (length,)."""

    def __init__(self, tokens: torch.Tensor, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return len(self.tokens) - self.length - 1

    def __getitem__(self, start: int) -> dict[str, torch.Tensor]:
        window = self.tokens[start : start + self.length + 1]
        return {"tokens": window[:-1], "targets": window[1:]}


class CharLM(nn.Module):
    """A causal transformer over characters."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, 0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("future", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, (N, T, vocabulary)."""
        x = self.embed(tokens) + self.position
        return self.head(self.blocks(x, mask=self.future, is_causal=True))


def next_character(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of every next character."""
    return cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())


def _char_lm(length: int, width: int, layers: int, batch_size: int, name: str) -> Workload:
    text = (data_root() / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    number = {letter: i for i, letter in enumerate(sorted(set(text)))}
    tokens = torch.tensor([number[letter] for letter in text])
    return Workload(
        CharLM(len(number), length, width, layers),
        Windows(tokens, length),
        step=next_character,
        optimizer=adamw,
        batch_size=batch_size,
        drop_last=True,
        name=name,
    )


def char_lm() -> Workload:
    """A small language model, of a size for CPUs."""
    return _char_lm(64, 128, 2, 32, "char-lm")


def char_lm_gpu() -> Workload:
    """The language model of a size for GPUs."""
    return _char_lm(256, 384, 6, 64, "char-lm-gpu")


class Table(Dataset[Any]):
    """Rows of numbers with a class."""

    def __init__(self, samples: int = 100_000, features: int = 100) -> None:
        self.rows = torch.randn(samples, features)
        self.label = (self.rows[:, :8].sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows[index], self.label[index]


def tabular() -> Workload:
    """A multilayer perceptron on a table in memory: workers cost more than they bring."""
    net = nn.Sequential(nn.Linear(100, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 2))
    return Workload(net, Table(), loss=cross_entropy, optimizer=adamw, batch_size=256, name="tabular-mlp")


class Waiting(Table):
    """Rows that come from something slow, such as a network disk: waiting costs no CPU."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(0.002)
        return super().__getitem__(index)


def io_bound() -> Workload:
    """Two milliseconds of waiting for each sample: more workers than CPUs pay."""
    net = nn.Sequential(nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 2))
    return Workload(net, Waiting(20_000), loss=cross_entropy, optimizer=sgd, batch_size=32, name="io-bound")


def rebuild(model: nn.Module, batch: Any) -> torch.Tensor:
    """How far a digit is from what an autoencoder makes of it."""
    return mse_loss(model(batch[0]), batch[0].flatten(1))


def autoencoder() -> Workload:
    """A deep autoencoder on digits that are one tensor in memory."""
    digits = datasets.MNIST(data_root(), train=True, download=True)
    pictures = torch.utils.data.TensorDataset(digits.data.unsqueeze(1).float() / 255)
    net = nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 32), nn.ReLU()),
        *(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 784), nn.Sigmoid()),
    )
    return Workload(net, pictures, step=rebuild, optimizer=adamw, batch_size=128, name="autoencoder")


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mnist": mnist,
    "photos-64": photos_resnet18_64,
    "photos-96": photos_resnet18_96,
    "photos-resnet50": photos_resnet50,
    "tensors-resnet50": tensors_resnet50,
    "char-lm": char_lm,
    "char-lm-gpu": char_lm_gpu,
    "tabular": tabular,
    "io-bound": io_bound,
    "autoencoder": autoencoder,
}
