"""What won before is tried first, in the spelling of this space, and measured like all else."""

from __future__ import annotations

import dataclasses

import pytest
from profile_samples import BEST, MACHINE, WORKLOAD, YOURS, sample_profile
from search_worlds import fake_runner, run_fake, space_of

from autotune.profile.earlier import alike, earlier_settings
from autotune.profile.store import default_profile_path
from autotune.profile.yaml_io import dumps
from autotune.search.warm import MOST, first_guesses
from autotune.settings import Settings

PROFILE = sample_profile()


def test_numbers_that_cannot_be_had_here_become_the_nearest() -> None:
    """Sixteen workers of a large machine become the most that this one offers; other knobs stay legal."""
    space = space_of()
    (made,) = first_guesses(space, [space.yours.replace(num_workers=16, prefetch_factor=2)])
    assert made.loader.num_workers == max(space.values("num_workers"))
    assert space.legal(made)


def test_what_may_not_change_is_not_taken_over() -> None:
    """A batch size stays where learning may not change, and a knob that the user fixed."""
    space = space_of(fixed={"num_workers": 2})
    earlier = space.yours.replace(num_workers=4, prefetch_factor=4, batch_size=256)
    (made,) = first_guesses(space, [earlier])
    assert made.loader.num_workers == 2
    assert made.loader.batch_size == 64


def test_a_winner_in_another_batch_is_tried_in_the_users_own_first() -> None:
    """Other batches wait for their turn, which may never come; workers and the rest do not."""
    space = space_of(allow="recipe", learning_rates=(0.1,))
    earlier = space.yours.replace(num_workers=2, prefetch_factor=2, batch_size=128)
    own, larger = first_guesses(space, [earlier])
    assert (own.loader.batch_size, larger.loader.batch_size) == (64, 128)
    assert own.loader.num_workers == larger.loader.num_workers == 2


@pytest.mark.parametrize(("earlier", "here"), [(50, 64), (96, 96), (100, 128), (300, 256)])
def test_a_batch_that_is_none_here_becomes_a_doubling(earlier: int, here: int) -> None:
    """Sizes between two doublings have no turn of their own; what was exactly one of them may have it."""
    space = space_of(allow="recipe")
    won = space.yours.replace(batch_size=earlier, num_workers=2, prefetch_factor=2)
    sizes = {guess.loader.batch_size for guess in first_guesses(space, [won])}
    assert sizes == {64, here}


def test_yours_is_no_guess_and_few_guesses_are_made() -> None:
    """Settings that come to *yours* are left out; of many only the first are tried."""
    space = space_of()
    assert first_guesses(space, [space.yours]) == ()
    many = [space.settings(num_workers=n, prefetch_factor=2) for n in (1, 2, 3, 4)]
    assert first_guesses(space, [*many, *many]) == tuple(many[:MOST])


def test_the_first_full_trials_are_what_won_before() -> None:
    """A run tries them right after *yours* and the ceilings, with a reason that says so."""
    runner = fake_runner()
    before = Settings().replace(batch_size=64, num_workers=2, prefetch_factor=2, channels_last=True)
    outcome = run_fake(runner, first=lambda description: (before,))
    full = [t for t in outcome.trials if t.spec.mode == "full"]
    assert full[1].spec.reason == "what won here before"
    assert full[1].settings.loader.num_workers == 2
    assert full[1].settings.compute.channels_last


def test_the_most_alike_machine_comes_first() -> None:
    """Profiles of the same model are ordered by what differs; others, and those without a win, are out."""
    elsewhere = dataclasses.replace(
        PROFILE,
        settings=BEST.replace(num_workers=2),
        machine=dataclasses.replace(PROFILE.machine, usable_cpus=4),
    )
    other_model = dataclasses.replace(
        PROFILE, workload=dataclasses.replace(PROFILE.workload, model_class="Other")
    )
    kept = dataclasses.replace(
        PROFILE,
        settings=YOURS,
        measured=dataclasses.replace(PROFILE.measured, verdict="kept"),
    )
    found = alike([elsewhere, other_model, kept, PROFILE], MACHINE, WORKLOAD)
    assert found == (PROFILE.settings, elsewhere.settings)


def test_another_kind_of_device_gives_no_guess() -> None:
    """What won on a GPU says nothing for the CPU."""
    on_cpu = dataclasses.replace(WORKLOAD, device="cpu")
    assert alike([PROFILE], MACHINE, on_cpu) == ()


def test_saved_profiles_are_found_and_broken_ones_passed_over(monkeypatch, tmp_path) -> None:
    """Reads what is saved in the user's folder; a file that is no profile is no error."""
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert earlier_settings(MACHINE, WORKLOAD) == ()
    path = default_profile_path("one")
    path.parent.mkdir(parents=True)
    path.write_text(dumps(PROFILE), encoding="utf-8")
    path.with_name("broken.yaml").write_text("settings: [", encoding="utf-8")
    assert earlier_settings(MACHINE, WORKLOAD) == (PROFILE.settings,)
