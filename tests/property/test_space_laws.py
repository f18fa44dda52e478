"""Laws of the space, over random machines, workloads and users' settings."""

from __future__ import annotations

import random

from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import machines, settings, situations, workloads

from autotune.errors import UsageError
from autotune.settings import Settings
from autotune.space.candidates import Space, build_space, bundle, neighbours
from autotune.space.knobs import CLASS_RANK, KNOBS, knob
from autotune.space.rules import canonical, simplicity, violations

GROUPS = ("loader", "transfer", "compute", "recipe")
ALLOW = st.sampled_from(("exact", "numerics", "recipe"))


def _walk(space: Space, seed: int, steps: int = 12) -> list[Settings]:
    """Settings met on the way: *yours*, the bundle, random moves and random draws that are legal."""
    rng = random.Random(seed)
    here, met = space.start, [space.yours, space.start, bundle(space)]
    for _ in range(steps):
        here = rng.choice([here, met[2]])
        moves = [made for group in GROUPS for _, made in neighbours(space, here, group)]
        here = rng.choice(moves) if moves else here
        met.append(here)
        drawn = space.settings(**{option.knob: rng.choice(option.values) for option in space.options})
        if space.legal(drawn):
            met.append(drawn)
    return met


@given(settings(), machines(), workloads(), st.booleans())
def test_canonical_is_idempotent(drawn, machine, workload, keep):
    """Made canonical a second time, settings stay as they are."""
    once = canonical(drawn, machine, workload, keep_persistent=keep)
    assert canonical(once, machine, workload, keep_persistent=keep) == once


@given(situations(), ALLOW, st.integers(0, 999))
def test_nothing_in_the_space_has_a_violation(situation, allow, seed):
    """Moves, draws and the bundle can all be run, and each is told to be legal."""
    machine, workload, yours = situation
    space = build_space(machine, workload, yours, allow=allow)
    for met in _walk(space, seed):
        assert space.legal(met)
        assert violations(met, machine, workload, yours=yours) == ()


@given(situations(), ALLOW)
def test_yours_is_always_in_the_space(situation, allow):
    """What the user runs is the unchanged candidate, and each of its values is an option's."""
    machine, workload, yours = situation
    space = build_space(machine, workload, yours, allow=allow)
    assert space.settings() == yours
    assert space.legal(yours)
    assert all(yours.flat()[option.knob] in option.values for option in space.options)


@given(situations(), ALLOW)
def test_every_knob_is_searched_kept_or_follows(situation, allow):
    """No knob is lost, none is in two places, and each that is kept says why."""
    space = build_space(*situation, allow=allow)
    named = [*space.names, *(kept.knob for kept in space.kept)]
    rest = {each.name for each in KNOBS} - set(named)
    assert len(named) == len(set(named))
    assert rest <= {"persistent_workers"}
    assert all(kept.why for kept in space.kept)
    assert all(len(set(option.values)) == len(option.values) >= 2 for option in space.options)


@given(situations(), ALLOW, st.integers(0, 999))
def test_only_the_classes_allowed_change(situation, allow, seed):
    """A knob of a class above `allow` has the user's value in every candidate."""
    space = build_space(*situation, allow=allow)
    for met in _walk(space, seed):
        for name in met.changed_from(space.yours):
            assert CLASS_RANK[knob(name).kind] <= CLASS_RANK[allow]


@given(situations(), ALLOW, st.integers(0, 999))
def test_kept_knobs_keep_their_values(situation, allow, seed):
    """A kept knob never moves, except that there is nothing to prefetch or to persist without workers."""
    space = build_space(*situation, allow=allow)
    for met in _walk(space, seed):
        for kept in space.kept:
            follows = kept.knob in ("prefetch_factor", "persistent_workers")
            if not (follows and 0 in (met.loader.num_workers, space.yours.loader.num_workers)):
                assert met.flat()[kept.knob] == kept.value


@given(
    situations(),
    settings(),
    st.sets(st.sampled_from([each.name for each in KNOBS]), min_size=1, max_size=2),
    st.integers(0, 999),
)
def test_fixed_knobs_never_move(situation, wanted, names, seed):
    """Whatever the user fixes and can be had here has that value in every candidate."""
    machine, workload, yours = situation
    fixed = {name: wanted.flat()[name] for name in names}
    try:
        space = build_space(machine, workload, yours, allow="recipe", fixed=fixed)
    except UsageError:
        assume(False)
    for met in _walk(space, seed)[1:]:
        if met != yours:
            assert {name: met.flat()[name] for name in names} == fixed
            assert violations(met, machine, workload, yours=yours) == ()


@given(situations(), st.integers(0, 999))
def test_candidates_are_made_of_option_values(situation, seed):
    """Every searched knob of every candidate has an option's value, so that a sampler can draw it."""
    space = build_space(*situation, allow="recipe")
    for met in _walk(space, seed):
        assert all(met.flat()[option.knob] in option.values for option in space.options)


@given(situations(), st.sampled_from(GROUPS), st.integers(0, 999))
def test_a_move_goes_somewhere_new_on_its_own_side(situation, group, seed):
    """No move stays in place or is named twice; none touches another side, but for threads beside workers."""
    space = build_space(*situation, allow="recipe")
    for here in _walk(space, seed, steps=3):
        moves = neighbours(space, here, group)
        assert len({made for _, made in moves}) == len(moves)
        for name, made in moves:
            touched = {
                changed
                for changed in made.changed_from(here)
                if changed != "persistent_workers" or group == "loader"
            }
            if name == "num_workers" and "num_workers" in touched:
                touched.discard("cpu_threads")
            assert touched
            assert knob(name).group == group
            assert {knob(changed).group for changed in touched} == {group}


@given(situations(), settings(), settings())
def test_simplicity_tells_settings_apart(situation, one, other):
    """The key of ties is equal only for equal settings, and nothing is simpler than torch's defaults."""
    assert (simplicity(one) == simplicity(other)) == (one == other)
    assert simplicity(Settings()) <= simplicity(one)


@given(situations())
def test_size_counts_distinct_settings(situation):
    """A space has at least *yours*, and without options nothing else."""
    space = build_space(*situation, allow="numerics")
    assert space.size >= 1
    assert bool(space.options) or space.size == 1
