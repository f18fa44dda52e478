"""Batches of whatever shape: moved whole, counted rightly, described briefly."""

from __future__ import annotations

import collections
import types
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from autotune.measure.batches import (
    batch_bytes,
    count_samples,
    describe_batch,
    drawn_samples,
    map_tensors,
    tensors,
    to_device,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ELSEWHERE = torch.device("meta")
"""A device that every tensor can be sent to and that is not the CPU."""


class Named(NamedTuple):
    """A batch with names."""

    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Frozen:
    """A batch that cannot be changed, made by code that must not run twice."""

    x: torch.Tensor
    y: torch.Tensor
    scale: InitVar[float]
    name: str = "n"
    doubled: torch.Tensor = field(init=False)

    def __post_init__(self, scale: float) -> None:
        object.__setattr__(self, "x", self.x * scale)
        object.__setattr__(self, "doubled", self.x * 2)


class Graph:
    """An object that moves itself, as graph libraries have them."""

    def __init__(self, nodes: torch.Tensor) -> None:
        self.nodes = nodes
        self.parent: Any = self

    def to(self, device: torch.device) -> Graph:
        return Graph(self.nodes.to(device))


class Patient(Graph):
    """One that takes `non_blocking` and remembers it."""

    non_blocking: bool | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Patient:
        moved = Patient(self.nodes.to(device))
        moved.non_blocking = non_blocking
        return moved


class InPlace(Graph):
    """One that moves in place and returns nothing."""

    def to(self, device: torch.device) -> None:  # type: ignore[override]
        self.nodes = self.nodes.to(device)


class ReadOnly(Mapping[str, torch.Tensor]):
    """A mapping that is no dict, and is made from something else than a mapping."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self._items = {"x": x, "y": y}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class OwnList(list):  # type: ignore[type-arg]
    """A list that is not made from an iterable."""

    def __init__(self, *, empty: bool) -> None:
        super().__init__()
        assert empty


def x() -> torch.Tensor:
    return torch.arange(6.0).reshape(3, 2)


def y() -> torch.Tensor:
    return torch.arange(3)


def default_dict() -> collections.defaultdict[str, torch.Tensor]:
    return collections.defaultdict(torch.Tensor, x=x(), y=y())


def own_list() -> OwnList:
    found = OwnList(empty=True)
    found.extend((x(), y()))
    return found


SHAPES: dict[str, Any] = {
    "tensor": x,
    "tuple": lambda: (x(), y()),
    "list": lambda: [x(), y()],
    "own list": own_list,
    "dict": lambda: {"x": x(), "y": y(), "name": "n"},
    "ordered dict": lambda: collections.OrderedDict(x=x(), y=y()),
    "default dict": default_dict,
    "user dict": lambda: collections.UserDict(x=x(), y=y()),
    "mapping proxy": lambda: types.MappingProxyType({"x": x(), "y": y()}),
    "read-only mapping": lambda: ReadOnly(x(), y()),
    "namedtuple": lambda: Named(x(), y()),
    "return type": lambda: torch.max(x(), 1),
    "dataclass": lambda: Frozen(x(), y(), scale=2.0),
    "nested": lambda: ({"a": [x(), (y(), None)]}, "text", 3),
    "packed sequence": lambda: pack_sequence([torch.ones(3, 2), torch.ones(1, 2)]),
    "object": lambda: Graph(x()),
    "objects in a tuple": lambda: (Graph(x()), y()),
    "objects in a namedtuple": lambda: Named(Graph(x()), y()),  # type: ignore[arg-type]
    "objects in a dict": lambda: {"graph": Graph(x()), "y": y()},
    "objects deep inside": lambda: ([{"graph": (Graph(x()), y())}],),
    "objects that move in place": lambda: (InPlace(x()), y()),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_of_a_batch_is_moved(shape: str) -> None:
    """Wherever it is held; only a packed sequence keeps its lengths on the host, as torch wants them."""
    batch = SHAPES[shape]()
    before = list(tensors(batch))
    moved = to_device(batch, ELSEWHERE)
    after = list(tensors(moved))
    assert len(after) == len(before) > 0
    lengths = [moved.batch_sizes] if isinstance(moved, PackedSequence) else []
    assert all(t.device == ELSEWHERE for t in after if not any(t is length for length in lengths))


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "objects that move in place"])
def test_the_batch_that_was_given_stays_where_it_was(shape: str) -> None:
    """The same batch can be handed in again."""
    batch = SHAPES[shape]()
    to_device(batch, ELSEWHERE)
    assert all(t.device.type == "cpu" for t in tensors(batch))


@pytest.mark.parametrize(
    "shape", [name for name in SHAPES if name not in ("own list", "read-only mapping", "object")]
)
def test_containers_keep_their_class(shape: str) -> None:
    """A model that asks for `batch.x` or `isinstance` finds what it knows."""
    batch = SHAPES[shape]()
    assert type(to_device(batch, ELSEWHERE)) is type(batch)


def test_containers_that_cannot_be_made_anew_become_plain_ones() -> None:
    """A list or a dict with the same items is the next best."""
    assert type(to_device(own_list(), ELSEWHERE)) is list
    assert list(to_device(ReadOnly(x(), y()), ELSEWHERE)) == ["x", "y"]


def test_a_default_dict_keeps_its_default() -> None:
    """A copy is more than its items."""
    assert to_device(default_dict(), ELSEWHERE).default_factory is torch.Tensor


def test_a_dataclass_is_not_made_a_second_time() -> None:
    """What `__post_init__` did to the values is not done again, and fields it made are moved too."""
    batch = Frozen(x(), y(), scale=2.0)
    moved = to_device(batch, torch.device("cpu"))
    assert torch.equal(moved.x, x() * 2)
    assert torch.equal(moved.doubled, x() * 4)
    assert moved.name == "n"
    assert to_device(batch, ELSEWHERE).doubled.device == ELSEWHERE


@pytest.mark.parametrize("non_blocking", [False, True])
def test_objects_are_told_whether_they_may_hurry(non_blocking: bool) -> None:
    """`non_blocking` reaches a `.to()` that takes it."""
    moved, _ = to_device((Patient(x()), y()), ELSEWHERE, non_blocking=non_blocking)
    assert moved.non_blocking is non_blocking


def test_channels_last_touches_pictures_alone() -> None:
    """4-D float tensors change their memory order, values and all else stay."""
    picture, mask = torch.rand(2, 3, 4, 5), torch.ones(2, 3, 4, 5, dtype=torch.int64)
    volume = torch.rand(2, 3, 4, 5, 6)
    moved = to_device([picture, mask, volume, y()], torch.device("cpu"), channels_last=True)
    assert moved[0].is_contiguous(memory_format=torch.channels_last)
    assert all(t.is_contiguous() for t in moved[1:])
    assert all(torch.equal(a, b) for a, b in zip(moved, [picture, mask, volume, y()], strict=True))


def test_map_tensors_leaves_other_leaves_alone() -> None:
    """Text, numbers and None pass through as the same objects."""
    marker = object()
    mapped = map_tensors({"a": [x(), marker], "b": "text", "c": None}, lambda t: t + 1)
    assert torch.equal(mapped["a"][0], x() + 1)
    assert mapped["a"][1] is marker
    assert (mapped["b"], mapped["c"]) == ("text", None)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.zeros(5, 2), torch.zeros(5)), 5),
        ({"step": torch.tensor(3), "x": torch.zeros(4, 1)}, 4),
        (Named(torch.zeros(6), torch.zeros(6)), 6),
        (Graph(torch.zeros(7, 1)), 7),
        (([Graph(torch.zeros(7, 1))], torch.zeros(2)), 7),
        (pack_sequence([torch.ones(3, 2), torch.ones(1, 2)]), 2),
        ((pack_sequence([torch.ones(3, 2), torch.ones(2, 2), torch.ones(1, 2)]), torch.zeros(3)), 3),
        ("text", 9),
        ((), 9),
        (torch.tensor(1.0), 9),
        (None, 9),
    ],
)
def test_samples_are_the_first_dimension_of_the_first_tensor(batch: Any, samples: int) -> None:
    """Scalars do not count; a packed sequence counts its sequences; without a tensor the default stands."""
    assert count_samples(batch, 9) == samples


def test_bytes_are_those_of_all_tensors() -> None:
    """Of those inside objects and packed sequences too; a view counts what it shows."""
    assert batch_bytes((torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))) == 32 + 32
    assert batch_bytes({"graph": Graph(torch.zeros(4, 2)), "y": torch.zeros(4)}) == 32 + 16
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    assert batch_bytes(packed) == packed.data.numel() * 4 + packed.batch_sizes.numel() * 8
    assert batch_bytes(torch.zeros(1000)[:10]) == 40
    assert batch_bytes("text") == 0


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (torch.zeros(2, 3), "Tensor[2, 3] float32"),
        ((torch.zeros(2), torch.zeros(2, dtype=torch.int64)), "(Tensor[2] float32, Tensor[2] int64)"),
        ([torch.zeros(1)] * 6, "[" + ", ".join(["Tensor[1] float32"] * 4) + ", ...]"),
        ({"x": [torch.zeros(1)], "n": "text"}, "{x: [Tensor[1] float32], n: str}"),
        ([[[[torch.zeros(1)]]]], "[[list]]"),
        (Graph(torch.zeros(1)), "Graph"),
        (None, "NoneType"),
    ],
)
def test_a_batch_is_described_in_one_line(batch: Any, text: str) -> None:
    """Shapes and types to two levels, for error messages."""
    assert describe_batch(batch) == text


def test_a_tensor_of_the_expected_length_is_counted_before_the_first() -> None:
    """Where time or nodes stand in front, the batch size is found behind them; else they count."""
    sequences = (torch.zeros(5, 3, 2), y())
    assert count_samples(sequences, 1, expected=3) == 3
    assert count_samples(sequences, 1, expected=4) == 5
    assert count_samples(sequences, 1) == 5


def test_a_tensor_that_holds_nothing_counts_nothing() -> None:
    """A batch whose first part happens to be empty has samples all the same."""
    assert count_samples((torch.zeros(0, 4), x()), 1) == 3
    assert count_samples((torch.zeros(0, 4),), 7) == 7


def test_indices_say_how_many_samples_were_drawn() -> None:
    """Whatever is made of them; but one index may stand for a batch that the dataset makes."""
    ragged = torch.zeros(9, 2)
    assert drawn_samples(ragged, [4, 1, 3], 4, own_sampler=False) == 3
    assert drawn_samples(ragged, [4], None, own_sampler=True) == 1
    assert drawn_samples(ragged, [4], None, own_sampler=False) == 9
    assert drawn_samples(ragged, [4, 1], None, own_sampler=False) == 2
    assert drawn_samples((ragged, x()), None, 3, own_sampler=False) == 3
