"""The step-time model: what it learns from few trials, and what it proposes."""

from __future__ import annotations

import dataclasses
import math

from search_worlds import History, context, space_of, steady_rate

from autotune.facts import GpuFacts
from autotune.search.knowledge import Knowledge
from autotune.search.predict import observations, predicted_log_rates, predictions
from autotune.settings import Settings
from autotune.space.candidates import Space
from autotune.testing import fake_description

GPU = GpuFacts(index=0, name="fake GPU", memory_bytes=16 << 30, capability=(8, 0), native_bf16=True)


def conv_space(**facts: object) -> Space:
    return space_of(**{"has_conv2d": True, "image_input": True, **facts})


def opened(space: Space, rate=steady_rate) -> History:
    """*Yours* and its two ceilings in a world."""
    history = History()
    history.ran(space.yours, rate(space.yours, "full"), "yours")
    history.ran(space.yours, rate(space.yours, "loader"), "ceiling", "loader")
    return history.ran(space.yours, rate(space.yours, "compute"), "ceiling", "compute")


def test_nothing_is_predicted_before_anything_ran() -> None:
    """Without a measurement of *yours* there is no proposal."""
    know = Knowledge(context(conv_space()), [])
    assert predictions(know) == ()


def test_repeats_are_pooled_and_finals_are_left_out() -> None:
    """One observation for each settings and mode, less noisy when repeated; finals teach nothing."""
    space = conv_space()
    history = opened(space).ran(space.yours, 700.0, "joint").ran(space.yours, 1.0, "final", pair=0)
    seen = observations(Knowledge(context(space), history))
    assert [each.mode for each in seen] == ["full", "loader", "compute"]
    assert seen[0].noise < seen[1].noise
    assert math.exp(seen[0].log_rate) > 300


def test_measured_settings_are_predicted_as_measured() -> None:
    """Where something was measured the model says what was measured, within its noise."""
    space = conv_space()
    history = opened(space)
    know = Knowledge(context(space), history)
    means, sds = predicted_log_rates(know, [space.yours])
    assert abs(means[0] - math.log(know.rate(space.yours))) < 0.03
    assert sds[0] < 0.05


def test_a_compute_trial_alone_moves_the_full_prediction() -> None:
    """A switch that made the step alone faster is expected to make the full step faster."""
    space = conv_space()
    fast = space.settings(channels_last=True)
    history = opened(space)
    before = predicted_log_rates(Knowledge(context(space), history), [fast])[0][0]
    history.ran(fast, 2 * steady_rate(space.yours, "compute"), "compute", "compute")
    after = predicted_log_rates(Knowledge(context(space), history), [fast])[0][0]
    assert after > before + 0.1


def test_a_slow_step_is_not_helped_by_more_workers() -> None:
    """Where the loader alone is twenty times as fast as the step, workers promise less than switches."""
    space = conv_space()
    history = History()
    history.ran(space.yours, 95.0, "yours")
    history.ran(space.yours, 2000.0, "ceiling", "loader")
    history.ran(space.yours, 100.0, "ceiling", "compute")
    know = Knowledge(context(space), history)
    more, switched = space.settings(num_workers=2), space.settings(channels_last=True)
    gains = {p.settings: p.gain for p in predictions(know)}
    assert gains[switched] > 1.2 * gains[more]


def test_a_slow_loader_is_helped_by_workers_on_a_gpu() -> None:
    """Where the loader is the bottleneck of a GPU, the proposal has several workers."""
    space = space_of(device="cuda", gpus=(GPU,), usable_cpus=8, logical_cpus=8)
    history = History()
    history.ran(space.yours, 95.0, "yours", wait=0.95)
    history.ran(space.yours, 100.0, "ceiling", "loader")
    history.ran(space.yours, 2000.0, "ceiling", "compute")
    found = predictions(Knowledge(context(space), history))[0]
    assert found.settings.loader.num_workers >= 4
    assert found.lead > math.log(2)


def test_values_never_tried_stay_worth_a_trial() -> None:
    """What nothing is known of has a wide deviation: it is never ruled out by the model."""
    space = conv_space()
    history = opened(space)
    for workers in (1, 2, 3, 4):
        history.ran(space.settings(num_workers=workers), 300.0 + workers)
    know = Knowledge(context(space), history)
    unseen = space.settings(channels_last=True)
    (_, seen_sd), (_, unseen_sd) = (
        predicted_log_rates(know, [settings]) for settings in (space.settings(num_workers=2), unseen)
    )
    assert unseen_sd[0] > 3 * seen_sd[0]


def test_the_best_of_a_known_world_is_proposed_soon() -> None:
    """Ten proposals reach 98 % of the best that the made-up machine can do."""
    space = conv_space()
    history = opened(space)
    for _ in range(10):
        found = predictions(Knowledge(context(space), history))[0]
        history.ran(found.settings, steady_rate(found.settings, "full"), "sampled")
    rates = [steady_rate(p.settings, "full") for p in predictions(Knowledge(context(space), history))]
    tried = [steady_rate(t.settings, "full") for t in history]
    assert max(tried) >= 0.98 * max(rates)


def test_a_loop_without_a_loader_is_predicted_from_its_step() -> None:
    """Without a DataLoader the compute side is all there is."""
    space = space_of(
        dataset_class=None, dataset_samples=None, batch_size=None, has_conv2d=True, image_input=True
    )
    history = History().ran(space.yours, 100.0, "yours")
    found = predictions(Knowledge(context(space), history))[0]
    assert found.settings.loader == space.yours.loader


def test_memory_follows_the_batch_size_and_what_would_not_fit_is_left_out() -> None:
    """Two measured batch sizes give a line; what it puts beyond the device's memory is not proposed."""
    space = space_of(allow="recipe", device="cuda", gpus=(GPU,), batch_size=64)
    history = History().ran(space.yours, 100.0, "yours")
    double = space.settings(batch_size=128)
    history.ran(double, 110.0)
    for i, gib in enumerate((5, 9)):
        peak = _with_peak(history[i].measurement, gib << 30)
        history[i] = type(history[i])(number=i, spec=history[i].spec, measurement=peak)
    found = predictions(Knowledge(context(space), history))
    peaks = {p.settings.loader.batch_size: p.peak_device_bytes for p in found if _plain(p.settings)}
    assert 256 not in peaks
    assert all(abs(peaks[128] - (9 << 30)) < 1 << 20 for _ in peaks)


def test_memory_is_that_of_the_device_that_trains() -> None:
    """A smaller GPU in the same machine leaves nothing out."""
    small = dataclasses.replace(GPU, index=1, memory_bytes=1 << 30)
    space = space_of(allow="recipe", device="cuda:0", gpus=(GPU, small), batch_size=64)
    history = History().ran(space.yours, 100.0, "yours").ran(space.settings(batch_size=128), 110.0)
    for i, gib in enumerate((5, 6)):
        peak = _with_peak(history[i].measurement, gib << 30)
        history[i] = dataclasses.replace(history[i], measurement=peak)
    found = predictions(Knowledge(context(space), history))
    assert any(p.settings.loader.batch_size == 256 and _plain(p.settings) for p in found)


def _plain(settings: Settings) -> bool:
    return settings.compute.precision == "float32"


def _with_peak(measurement, peak: int):
    return dataclasses.replace(measurement, peak_device_bytes=peak)


def test_starts_count_in_short_runs_only() -> None:
    """Workers that take long to start are expected to do worse in one short epoch than in a long run."""
    told = fake_description(dataset_samples=2000)
    space = conv_space(dataset_samples=told.workload.dataset_samples)
    history = opened(space)
    workers = space.settings(num_workers=2)
    history.ran(workers, 500.0)
    last = history[-1]
    slow = dataclasses.replace(last.measurement, startup_s=5.0)
    history[-1] = dataclasses.replace(last, measurement=slow)
    other = space.settings(num_workers=2, channels_last=True)
    short, long = (
        predicted_log_rates(Knowledge(context(space, epochs=epochs), history), [other])[0][0]
        for epochs in (1, 100)
    )
    assert short < long - 0.2
