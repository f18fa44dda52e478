"""A workload to try the tuner on without downloading anything: drawn JPEG photos and a ResNet-18.

The photos are drawn and encoded when the workload is made, so decoding and augmenting them is the same
work as with photos from a disk. What they show decides the class, so the model has something to learn.
"""

from __future__ import annotations

import importlib.util
import io
import math
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset

from autotune.errors import EnvironmentFault
from autotune.workload import Workload

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = 10
PHOTO_SIZE = (1024, 768)
"""Width and height in pixels."""

# On one CPU core a photo costs about as much to load as to train on, so both sides are worth tuning, and
# workers pay only together with fewer threads.
_CPU = {"crop": 48, "batch_size": 16}
_GPU = {"crop": 224, "batch_size": 64}


class DrawnPhotos(Dataset[tuple[torch.Tensor, int]]):
    """Drawn photos, held as JPEG bytes; each item is decoded and randomly cropped anew.

    Items are `(image, label)`: a float32 tensor of shape (3, crop, crop), normalised, and a class index.

    Args:
        photos: how many photos to draw.
        repeats: how often each photo comes in an epoch, every time under another crop.
        crop: side of the square crop in pixels.
        seed: two datasets of the same seed hold the same bytes.

    Raises:
        EnvironmentFault: where torchvision is not installed.
    """

    def __init__(self, *, photos: int = 96, repeats: int = 64, crop: int = 48, seed: int = 0) -> None:
        require_torchvision()
        from torchvision import transforms

        self.repeats = repeats
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(crop),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            ]
        )
        rng = random.Random(seed)
        self.jpegs = [draw_jpeg(number % CLASSES, rng) for number in range(photos)]

    def __len__(self) -> int:
        return len(self.jpegs) * self.repeats

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        from PIL import Image

        number = index % len(self.jpegs)
        with Image.open(io.BytesIO(self.jpegs[number])) as photo:
            return self.transform(photo.convert("RGB")), number % CLASSES


def make() -> Workload:
    """The demo's workload: sized for the accelerator where there is one, else for a few CPU cores.

    Takes about two seconds, most of it to draw the photos.

    Raises:
        EnvironmentFault: where torchvision is not installed.
    """
    size = _GPU if torch.accelerator.is_available() else _CPU
    return Workload(
        resnet18,
        DrawnPhotos(crop=size["crop"]),
        loss=nn.functional.cross_entropy,
        optimizer=sgd,
        batch_size=size["batch_size"],
        device=_first_of_several(),
        name="demo",
    )


def resnet18() -> nn.Module:
    """A torchvision ResNet-18 with random weights.

    Raises:
        EnvironmentFault: where torchvision is not installed.
    """
    require_torchvision()
    from torchvision import models

    model: nn.Module = models.resnet18(weights=None, num_classes=CLASSES)
    return model


def sgd(params: Iterable[Any]) -> torch.optim.Optimizer:
    """SGD with momentum, as ResNets are commonly trained."""
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-4)


def require_torchvision() -> None:
    """Check that torchvision is there.

    Raises:
        EnvironmentFault: where it is not.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise EnvironmentFault(
            "the demo needs torchvision",
            why="it trains a torchvision ResNet-18 on photos that Pillow decodes, and neither is installed",
            fix='pip install "torch-autotune[demo]"',
        )


def draw_jpeg(label: int, rng: random.Random) -> bytes:
    """One photo of class `label` as JPEG bytes: a lit background, grain, and `label`-sided shapes."""
    photo = _background(rng)
    _add_shapes(photo, sides=label + 3, rng=rng)
    buffer = io.BytesIO()
    photo.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def _background(rng: random.Random) -> Image:
    """A gradient between two colours under grain; the grain gives JPEG as much to code as a photo does."""
    from PIL import Image, ImageChops

    def colour() -> tuple[int, ...]:
        return tuple(rng.randrange(40, 216) for _ in range(3))

    light = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(PHOTO_SIZE)
    lit = Image.composite(
        Image.new("RGB", PHOTO_SIZE, colour()), Image.new("RGB", PHOTO_SIZE, colour()), light
    )
    # Noise of an own generator, since Pillow's effect_noise cannot be seeded; drawn small, to be quick.
    grain = Image.frombytes(
        "L", (PHOTO_SIZE[0] // 2, PHOTO_SIZE[1] // 2), rng.randbytes(math.prod(PHOTO_SIZE) // 4)
    )
    soft = grain.resize(PHOTO_SIZE).point([value // 5 for value in range(256)])
    return ImageChops.add(lit, Image.merge("RGB", (soft, soft, soft)), offset=-25)


def _add_shapes(photo: Image, *, sides: int, rng: random.Random) -> None:
    from PIL import ImageDraw

    pen = ImageDraw.Draw(photo)
    for _ in range(12):
        centre = (rng.randrange(PHOTO_SIZE[0]), rng.randrange(PHOTO_SIZE[1]))
        pen.regular_polygon(
            (centre, rng.randrange(40, 160)),
            n_sides=sides,
            rotation=rng.randrange(360),
            fill=tuple(rng.randrange(256) for _ in range(3)),
        )


def _first_of_several() -> str | None:
    """The first accelerator where there are several, so that the demo does not stop to ask which one."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or torch.accelerator.device_count() < 2:
        return None
    return f"{accelerator.type}:0"
