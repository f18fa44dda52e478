"""Photos in folders and a ResNet-18: tune, save the profile, load it again and train with it.

python examples/photos.py --data DIR                     # DIR/clothing/train and DIR/clothing/test
python examples/photos.py --train DIR --test DIR         # any two folders with a folder for each class
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

import autotune

NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photos(train: Path, test: Path, crop: int) -> tuple[datasets.ImageFolder, datasets.ImageFolder]:
    """The training photos under the usual augmentation, the test photos under a centre crop."""
    augment = [
        transforms.RandomResizedCrop(crop),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.2, 0.2, 0.2),
        transforms.ToTensor(),
        NORMALIZE,
    ]
    plain = [
        transforms.Resize(crop * 8 // 7),
        transforms.CenterCrop(crop),
        transforms.ToTensor(),
        NORMALIZE,
    ]
    return (
        datasets.ImageFolder(train, transforms.Compose(augment)),
        datasets.ImageFolder(test, transforms.Compose(plain)),
    )


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.02, momentum=0.9, weight_decay=1e-4)


def train_epoch(loader: DataLoader, step: Callable[[Any], Any]) -> float:
    """Train one epoch; gives its seconds, the start of the workers included."""
    started = time.perf_counter()
    for batch in loader:
        loss = step(batch)
    loss.item()  # waits for the device
    return time.perf_counter() - started


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Percent of the photos that the model gets right."""
    device = next(model.parameters()).device
    model.eval()
    right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in loader)
    model.train()
    return 100 * right / len(loader.dataset)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Any], torch.Tensor]:
    """A training step as anyone writes it."""
    device = next(model.parameters()).device

    def step(batch: Any) -> torch.Tensor:
        x, y = (part.to(device) for part in batch)
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("AUTOTUNE_DATA", "data"))
    parser.add_argument(
        "--train", type=Path, default=None, help="training photos; DATA/clothing/train without"
    )
    parser.add_argument("--test", type=Path, default=None, help="test photos; DATA/clothing/test without")
    parser.add_argument("--crop", type=int, default=128, help="side of the crops in pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1, help="epochs to train before and after")
    parser.add_argument("--budget", default="5m", help="time that find_best may take")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; the accelerator where there is one")
    parser.add_argument(
        "--profile", type=Path, default=Path("photos.yaml"), help="where to save what was found"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device(args.device or found or "cpu")
    root = Path(args.data) / "clothing"
    train, test = photos(args.train or root / "train", args.test or root / "test", args.crop)
    resnet = partial(models.resnet18, weights=None, num_classes=len(train.classes))
    test_loader = DataLoader(test, batch_size=args.batch_size)

    # 1. Before: torch's defaults and a plain loop.
    torch.manual_seed(0)
    model = resnet().to(device)
    loader = DataLoader(train, batch_size=args.batch_size, shuffle=True)
    step = plain_step(model, sgd(model.parameters()))
    before = [train_epoch(loader, step) for _ in range(args.epochs)]
    print(f"before: {min(before):.2f} s per epoch, {accuracy(model, test_loader):.1f} % right", flush=True)

    # 2. Tune that very loader, and keep what was found.
    best = autotune.find_best(
        resnet,
        loader,
        loss=cross_entropy,
        optimizer=sgd,
        device=str(device),
        budget=args.budget,
        name="photos",
    )
    print(best)
    best.save(args.profile)

    # 3. After: as another program would, from the file.
    tuned = autotune.load(args.profile)
    torch.manual_seed(0)
    model = resnet().to(device)
    with tuned.kit(model, sgd, loss=cross_entropy, device=str(device)) as kit:
        loader = tuned.loader(train)
        after = [train_epoch(loader, kit.step) for _ in range(args.epochs)]
    print(f"after:  {min(after):.2f} s per epoch, {accuracy(model, test_loader):.1f} % right")
    print(f"{min(before) / min(after):.2f}x as fast, with the settings in {args.profile}")


if __name__ == "__main__":
    main()
