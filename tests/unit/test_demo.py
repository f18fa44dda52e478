from __future__ import annotations

import importlib.util
import io
import pickle
from functools import partial

import pytest
import torch
from PIL import Image

from autotune import demo
from autotune.errors import EnvironmentFault
from autotune.workload import Workload


@pytest.fixture(scope="module")
def photos() -> demo.DrawnPhotos:
    """Three photos, four times an epoch."""
    return demo.DrawnPhotos(photos=3, repeats=4, crop=32)


def test_equal_seeds_draw_equal_photos(photos: demo.DrawnPhotos) -> None:
    """A seed decides every byte, so two runs of the demo read the same photos."""
    assert demo.DrawnPhotos(photos=3, seed=0).jpegs == photos.jpegs
    assert demo.DrawnPhotos(photos=3, seed=1).jpegs != photos.jpegs


def test_photos_are_jpegs_of_the_stated_size(photos: demo.DrawnPhotos) -> None:
    """What is held in memory are real JPEG files, with too much detail to be coded away."""
    for data in photos.jpegs:
        with Image.open(io.BytesIO(data)) as photo:
            assert (photo.format, photo.size) == ("JPEG", demo.PHOTO_SIZE)
        assert len(data) > 100_000


def test_items_are_normalised_crops_with_a_class(photos: demo.DrawnPhotos) -> None:
    """An item is a float32 image of the crop's size and the class of its photo."""
    image, label = photos[7]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert image.min() < 0 < image.max()
    assert label == 7 % 3


def test_an_epoch_repeats_each_photo_under_new_crops(photos: demo.DrawnPhotos) -> None:
    """Every photo comes `repeats` times, cropped anew each time."""
    assert len(photos) == 12
    torch.manual_seed(0)
    (first, label), (again, label_again) = photos[1], photos[4]
    assert label == label_again
    assert not torch.equal(first, again)


def test_iterating_ends_after_one_epoch(photos: demo.DrawnPhotos) -> None:
    """An index outside of the epoch is an IndexError, so a plain for loop ends."""
    with pytest.raises(IndexError):
        photos[len(photos)]
    assert sum(1 for _ in photos) == len(photos)


def test_the_dataset_travels_to_a_worker(photos: demo.DrawnPhotos) -> None:
    """Pickling keeps the photos and the way they are augmented."""
    copy = pickle.loads(pickle.dumps(photos))
    assert copy.jpegs == photos.jpegs
    torch.manual_seed(0)
    expected = photos[2][0]
    torch.manual_seed(0)
    assert torch.equal(copy[2][0], expected)


def test_make_gives_a_workload_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, loss and optimizer of the demo fit its photos: one step has a gradient for each weight."""
    monkeypatch.setattr(demo, "DrawnPhotos", partial(demo.DrawnPhotos, photos=2, repeats=1))
    workload = demo.make()
    assert isinstance(workload, Workload)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters())
    images, labels = zip(*workload.dataset)
    assert workload.loss is not None
    workload.loss(model(torch.stack(images)), torch.tensor(labels)).backward()
    optimizer.step()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "count", "named"), [("cuda", 0, None), ("cuda", 1, None), ("cuda", 2, "cuda:0"), (None, 0, None)]
)
def test_the_first_of_several_accelerators_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int, named: str | None
) -> None:
    """Two accelerators do not stop the demo with a question; one or none leaves the choice to the tuner."""
    accelerator = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: accelerator)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(demo, "DrawnPhotos", lambda **_: [1])
    assert demo.make().device == named


@pytest.mark.parametrize("use", [demo.DrawnPhotos, demo.resnet18, demo.make])
def test_without_torchvision_the_fix_is_named(monkeypatch: pytest.MonkeyPatch, use: object) -> None:
    """A missing torchvision is one sentence with the command that installs it, not an ImportError."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as caught:
        use()  # type: ignore[operator]
    assert "torch-autotune[demo]" in caught.value.fix
