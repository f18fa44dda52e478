"""The benchmarks of learning: runs, learning rates, and what a sample teaches."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from benchmark_scripts import BENCHMARKS, load
from strategies import plain_workload

from autotune.codec import encode
from autotune.errors import StudyError
from autotune.outcome import Recipe
from autotune.recipe.noise_scale import GradientStats, GradientStep, noise_scale

load("raw_file")
load("real_workloads")
runs = load("accuracy_runs")
load("samples_to_target")
load("efficiency_tasks")
eff = load("efficiency")
rates = load("learning_rates")
places = load("noise_places")


JOB = runs.Job(
    data="photos",
    seed=0,
    profile="",
    batch_size=8,
    epochs=1,
    most_epochs=2,
    target=30.0,
    every=400,
    samples=None,
    crop=64,
    device="cpu",
)


def mark(epoch: int, samples: int, accuracy: float):
    return runs.Mark(epoch=epoch, samples=samples, seconds=samples / 10, accuracy=accuracy)


MARKS = [mark(1, 100, 90.0), mark(1, 150, 98.5), mark(2, 250, 97.0), mark(2, 300, 98.0)]


def test_a_rate_is_told_by_its_last_looks_and_the_samples_to_the_target():
    """The mean over seeds with its ends; a seed that never came there is named, and may decide the median."""
    text = rates.line(0.01, [MARKS, [*MARKS, mark(3, 450, 99.0)]], 98.5)
    assert text == "0.01      98.50 (98.00 to 99.00)   150 samples to 98.5 % (150 150)"
    assert "never samples to 99.5 % (never never)" in rates.line(0.01, [MARKS, MARKS], 99.5)


def look(noise: float) -> GradientStats:
    """Sixteen steps without chance, of 4 micro-batches with 16 samples."""
    step = GradientStep(mean_of_squares=1 + noise / 16, square_of_mean=1 + noise / 64)
    return GradientStats(micro_samples=16, micro_batches=4, steps=(step,) * 16)


def test_looks_at_a_training_are_held_beside_all_of_them_together():
    """Two that are sure of themselves and differ: the truth is between, and neither interval holds it."""
    assert places.truth_of([look(50.0), look(150.0)]) == pytest.approx(100.0)
    text = places.line("net", "at one point", [look(50.0), look(150.0)])
    assert "all   100  one   100 (50 to 150)" in text
    assert text.endswith("inside 0 of 2, bound under 1")
    assert places.line("net", "over a stretch", [look(80.0)] * 3).endswith("inside 3 of 3, bound under 3")


def test_a_run_is_marked_and_goes_on_until_its_target():
    """Marks every so many samples and at ends of epochs, in growing time; most_epochs bounds it."""
    x = torch.randn(70, 1, 28, 28)
    y = torch.arange(70) % 10
    task = runs.Task(
        model=lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        train=torch.utils.data.TensorDataset(x, y),
        test=(x, y),
    )
    job = replace(JOB, data="mnist", batch_size=10, most_epochs=3, target=101.0, every=40)
    marks = runs.train(job, task)
    assert [(m.epoch, m.samples) for m in marks] == [
        (1, 40),
        (1, 70),
        (2, 80),
        (2, 120),
        (2, 140),
        (3, 160),
        (3, 200),
        (3, 210),
    ]
    assert all(a.seconds < b.seconds for a, b in pairwise(marks))
    assert [m.epoch for m in runs.train(replace(job, target=0.0), task)] == [1, 1]
    again = runs.train(job, task)
    assert [m.accuracy for m in again] == [m.accuracy for m in marks]


def test_a_file_of_an_earlier_version_is_gone_on_with(tmp_path):
    """What could not be asked for then, or was said to be nothing, is what it was; another net is not."""
    job = replace(JOB, seed=3, profile="p.yaml")

    def opened(run, **changes):
        path = tmp_path / "raw.json"
        common = {name: run[name] for name in run if name not in ("seed", "profile")}
        path.write_text(
            json.dumps({"identity": load("raw_file").identity("b", run=common), "values": {"a": 1}})
        )
        return runs.runs_file(path, "b", replace(job, **changes), ("seed", "profile")).values

    whole = encode(job)
    before = {name: whole[name] for name in whole if name not in runs.LATER_FIELDS}
    for earlier in (before, {**before, "lr": None}, whole):
        assert opened(earlier) == {"a": 1}
    with pytest.raises(StudyError, match="something else"):
        opened(before, net="shufflenet_v2_x0_5")
    assert opened({**before, "net": "shufflenet_v2_x0_5"}, net="shufflenet_v2_x0_5") == {"a": 1}


def test_the_rate_of_yours_can_be_another():
    """The optimizer is the example's in all else, and still makes one of any parameters."""
    made = runs._at(runs.example("mnist").sgd, 0.0125)([torch.nn.Parameter(torch.zeros(1))])
    assert [group["lr"] for group in made.param_groups] == [0.0125]
    assert made.defaults["momentum"] == 0.9


def losses(*values: float):
    return [eff.Mark(samples=100 * number, loss=loss) for number, loss in enumerate(values, start=1)]


def test_samples_to_a_loss_are_read_between_smoothed_marks():
    """On the straight line to the first mark that meets it with its neighbours; not before the first one."""
    marks = losses(1.3, 1.0, 0.7, 0.4, 0.1)
    assert eff.samples_to(marks, 0.55) == pytest.approx(350.0)
    assert eff.samples_to(marks, 1.0) == 200.0
    assert eff.samples_to(marks, 0.3) == math.inf


def test_a_single_lucky_mark_is_not_the_target_reached():
    """Nor is a loss that is no number."""
    assert eff.samples_to(losses(1.0, 1.0, 0.3, 1.0, 1.0), 0.5) == math.inf
    assert eff.samples_to(losses(1.0, math.nan, math.nan, math.nan), 0.5) == math.inf


def test_measured_efficiency_is_of_samples_and_stands_beside_what_was_predicted():
    """Twice the samples are half the efficiency; the lower bound of phi predicts less; no end of phi is 1."""
    seen = eff.Seen(growth=4, noise=96.0, bound=32.0, reference=32, own_samples=1000.0, samples=2000.0)
    assert seen.measured == 0.5
    assert seen.predicted == pytest.approx(128 / 224)
    assert seen.counted_on == pytest.approx(64 / 160)
    assert replace(seen, noise=None).predicted == 1.0
    assert replace(seen, samples=math.inf).measured == 0.0


def test_the_table_of_efficiency_has_a_line_for_each_growth():
    """Medians over seeds, with what was measured over what was predicted."""
    one = eff.Seen(growth=2, noise=32.0, bound=32.0, reference=32, own_samples=900.0, samples=1000.0)
    found = [one, replace(one, samples=1200.0), replace(one, growth=4)]
    lines = eff.table("a task", found).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["2", "4"]
    assert "0.82 (0.75 to 0.90)" in lines[2]
    assert lines[2].split()[-3:] == ["1.24", "1.24", "2"]


def test_training_ends_where_the_target_is_reached():
    """Looks come every so many samples; a target that is never met takes all epochs."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    task = eff.Task(
        model=lambda: torch.nn.Linear(4, 2),
        loss=torch.nn.functional.cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=4,
        train=torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()),
        held_out=torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()),
        target=0.0,
        every=8,
    )
    recipe_of_own = Recipe(
        batch_size=8,
        reference_batch_size=64,
        learning_rates=(0.0125,),
        reference_learning_rates=(0.1,),
        lr_rule="linear",
    )
    marks = eff.train(task, recipe_of_own, seed=0)
    assert [mark.samples for mark in marks] == list(range(8, eff.EPOCHS * 64 + 1, 8))
    assert marks[-1].loss < marks[0].loss
    assert marks == eff.train(task, recipe_of_own, seed=0)
    assert len(eff.train(replace(task, target=100.0), recipe_of_own, seed=0)) == 3


def test_no_run_begins_that_would_end_too_late():
    """By the longest so far."""
    now = [0.0]
    deadline = eff.Deadline(1.0, lambda: now[0])

    def work(seconds: float) -> None:
        now[0] += seconds

    deadline.timed(lambda: work(25.0))
    deadline.timed(lambda: work(5.0))
    assert deadline.fits()
    deadline.timed(lambda: work(6.0))
    assert not deadline.fits()


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_are_measured_once_side_by_side_or_in_turn(jobs, tmp_path, monkeypatch):
    """What the file holds is not measured again, and all that was asked for is in it afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script that is run
    raw = eff.RawFile(tmp_path / "raw.json", {})
    raw.once("known", lambda: 1)
    work = {"known": partial(int, "not measured"), "two": partial(int, "2"), "three": partial(int, "3")}
    assert eff.measure(raw, work, eff.Deadline(1.0), jobs)
    assert eff.RawFile(tmp_path / "raw.json", {}).values == {"known": 1, "two": 2, "three": 3}


def test_only_adam_is_also_warmed_up_from_a_hundredth():
    """SGD's recipe has always begun at the user's own rate; the own batch runs once."""
    kinds = partial(eff.kinds_of, modes=list(eff.MODES), growths=(2, 4))
    sgd, adam = kinds("mnist-sgd"), kinds("char-lm-adamw")
    modes = ("whole", "rates", "alone")
    assert sgd == [eff.OWN, *(f"{mode}/{growth}" for growth in (2, 4) for mode in modes)]
    assert set(adam) - set(sgd) == {f"hundredth/{growth}" for growth in (2, 4)}


def test_the_batch_alone_changes_no_other_number():
    """What every rule of the recipe is held against."""
    facts = plain_workload()
    noise = noise_scale(look(50.0))
    assert noise is not None
    alone = eff.recipe_of(facts, noise, 4, "alone")
    assert (alone.batch_size, alone.learning_rates) == (128, facts.learning_rates)
    assert (alone.warmup_samples, alone.weight_decays, alone.beta2s, alone.batch_norm_momenta) == (
        0,
        (),
        (),
        (),
    )
    assert eff.recipe_of(facts, noise, 4, "rates").learning_rates > facts.learning_rates


def test_whole_batches_alone_are_trained_on_and_each_epoch_is_shuffled_anew():
    """Every batch is of the size asked for; the same seed gives the same ones."""
    data = torch.utils.data.TensorDataset(torch.arange(10))
    first = [batch[0].tolist() for batch in eff.batches(data, 4, 2, seed=0)]
    assert [len(batch) for batch in first] == [4, 4, 4, 4]
    assert len({*first[0], *first[1]}) == 8
    assert first[:2] != first[2:]
    assert first == [batch[0].tolist() for batch in eff.batches(data, 4, 2, seed=0)]
