from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import autotune

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BUDGET_S = 180 if torch.cuda.is_available() else 100
"""With a GPU a process takes ten seconds to start; beside other work one run of *yours* takes 7 to 16 s.

The two that may end by themselves before are given some more.
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run_example(name: str, *args: object, home: Path) -> str:
    """What the example prints; its study and profiles stay inside of `home`."""
    paths = [str(EXAMPLES.parent), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", str(EXAMPLES / name), *map(str, args)],
        cwd=home,
        env={**os.environ, "AUTOTUNE_HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_mnist(root: Path, train: int, test: int) -> None:
    """Digits in MNIST's file format: the label is the row in which a bright bar lies."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = torch.arange(count) % 10
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        images[torch.arange(count), 2 * labels + 4] = 255
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        head = struct.pack(">II", 0x801, count)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.to(torch.uint8).numpy().tobytes())


def test_mnist_prints_a_row_for_each_trick(tmp_path: Path) -> None:
    """The table has the defaults, six tricks and find_best; every row was timed and tested each round."""
    write_mnist(tmp_path, train=1024, test=200)
    kept = tmp_path / "mnist.json"
    said = run_example(
        "mnist.py",
        *("--data", tmp_path, "--device", "cpu", "--batch-size", 16, "--repeats", 2, "--samples", 960),
        *("--budget", "60s", "--json", kept),
        home=tmp_path,
    )
    found = json.loads(kept.read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert next(iter(rows)) == "torch's defaults"
    assert list(rows)[-1] == "find_best"
    assert len(rows) == 8
    for name, row in rows.items():
        assert name in said
        assert len(row["epoch_s"]) == len(row["accuracy"]) == 2
        assert all(second > 0 for second in row["epoch_s"])
    assert "no accelerator" in rows["pin_memory"]["note"]
    assert rows["pin_memory"]["accuracy"] == rows["torch's defaults"]["accuracy"]
    assert autotune.Settings.from_flat(found["find_best"]).loader.batch_size == 16


def test_photos_trains_from_the_saved_profile(tmp_path: Path) -> None:
    """A profile is saved, is read again and trains; both epochs are timed and tested."""
    for part, count in (("train", 24), ("test", 4)):
        for number, label in enumerate(("light", "dark")):
            folder = tmp_path / "clothing" / part / label
            folder.mkdir(parents=True)
            for index in range(count):
                colour = (number * 150 + index, 90, 60)
                Image.new("RGB", (80, 60), colour).save(folder / f"{index}.jpg")
    said = run_example(
        "photos.py",
        *("--data", tmp_path, "--device", "cpu", "--crop", 32, "--batch-size", 8),
        *("--budget", f"{1.2 * BUDGET_S:.0f}s", "--profile", tmp_path / "photos.yaml"),
        home=tmp_path,
    )
    assert autotune.load(tmp_path / "photos.yaml").settings.loader.batch_size == 8
    assert len(re.findall(r"[\d.]+ s per epoch, [\d.]+ % right", said)) == 2
    assert "x as fast" in said


def test_char_lm_learns_from_dict_batches(tmp_path: Path) -> None:
    """A dict of tensors and a step of one's own are tuned, and the tuned kit lowers the loss."""
    text = tmp_path / "text.txt"
    text.write_text("the tide comes in and the tide goes out. " * 60)
    said = run_example(
        "char_lm.py",
        *(
            "--text",
            text,
            "--device",
            "cpu",
            "--length",
            16,
            "--batch-size",
            8,
            "--steps",
            60,
            "--budget",
            f"{1.2 * BUDGET_S:.0f}s",
        ),
        home=tmp_path,
    )
    losses = [float(value) for value in re.findall(r"^step +\d+ +loss ([\d.]+)", said, re.MULTILINE)]
    assert len(losses) == 3
    assert losses[-1] < losses[0] / 2


def test_char_lm_says_which_text_is_missing(tmp_path: Path) -> None:
    """Without a text there is a usage error that names the file and the option, not a traceback."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "char_lm.py"), "--data", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "tinyshakespeare.txt" in done.stderr
    assert "--text" in done.stderr
    assert "Traceback" not in done.stderr
