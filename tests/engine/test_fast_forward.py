"""Properties of the engine over random loads: what holds whatever arrives, and that skipping steps changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from prelude_proxy.engine.model import (
    EngineConfig,
    EngineProfile,
    EventKind,
    SchedulingPolicy,
    Sequence,
    SequenceState,
)
from prelude_proxy.engine.scheduler import Engine

PROFILE = EngineProfile(
    name="p",
    fixed_s=3e-4,
    load_s=1e-3,
    token_s=7.3e-5,
    sequence_s=1.1e-5,
    kv_read_s=2.17e-7,
    pair_s=1.3e-9,
    num_gpu_blocks=64,
)


@dataclass(frozen=True)
class Arrival:
    gap_s: float
    prompt: int
    output: int
    priority: int
    abort_after_s: float | None


arrivals = st.lists(
    st.builds(
        Arrival,
        gap_s=st.sampled_from([0.0, 1e-4, 1.7e-3, 0.02, 0.3]),
        prompt=st.integers(1, 90),
        output=st.integers(1, 100),
        priority=st.integers(0, 3),
        abort_after_s=st.one_of(st.none(), st.none(), st.sampled_from([0.0, 5e-4, 0.011, 0.13])),
    ),
    min_size=1,
    max_size=14,
)
configs = st.builds(
    EngineConfig,
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.sampled_from([6, 16, 64]),
    num_gpu_blocks=st.sampled_from([25, 30, 60]),
    block_size=st.just(8),
    max_model_len=st.just(192),
    policy=st.sampled_from(SchedulingPolicy),
    max_num_queued_reqs=st.sampled_from([None, 4]),
    reserve_output=st.booleans(),
)


def drive(engine: Engine, load: list[Arrival], looks: list[float], check=lambda engine: None) -> list[tuple]:
    """Plays the load; every event, named by the request's place in the load."""
    agenda: list[tuple[float, int, str, Sequence | None]] = []
    at_s = 0.0
    for number, arrival in enumerate(load):
        at_s += arrival.gap_s
        sequence = Sequence(
            arrival.prompt, arrival.output, arrival.priority, reserve_tokens=arrival.output, owner=number
        )
        agenda.append((at_s, len(agenda), "add", sequence))
        if arrival.abort_after_s is not None:
            agenda.append((at_s + arrival.abort_after_s, len(agenda), "abort", sequence))
    agenda += [(look_s, len(agenda) + index, "look", None) for index, look_s in enumerate(looks)]
    events: list[tuple] = []

    def note(new: list) -> None:
        events.extend((kind, round(time_s * 1e9), sequence.owner) for kind, time_s, sequence in new)
        check(engine)

    added = set()
    for now_s, _, what, sequence in sorted(agenda, key=lambda entry: entry[:2]):
        note(engine.advance(now_s))
        if what == "add" and engine.add(sequence, now_s):
            added.add(sequence)
        elif what == "abort" and sequence in added:
            engine.abort(sequence, now_s)
    while (next_s := engine.next_step_s()) != float("inf"):
        note(engine.advance(next_s))
    return events


@settings(max_examples=150, deadline=None)
@given(configs, arrivals, st.lists(st.floats(0, 1), max_size=5))
def test_fast_forward_equals_stepping(config, load, looks):
    """Skipping steps in closed form gives every event at the nanosecond that plain stepping gives, looked at or not."""
    skipping = Engine(config, PROFILE)
    stepping = Engine(config, PROFILE, max_stretch=1)
    assert drive(skipping, load, looks) == drive(stepping, load, [])
    assert skipping.stats() == stepping.stats()


@settings(max_examples=100, deadline=None)
@given(configs, arrivals, st.booleans())
def test_every_request_ends_once_and_all_blocks_come_back(config, load, prefix_cache):
    """Whatever arrives: one end each, all its tokens written, no KV block lost, limits never exceeded."""
    engine = Engine(config, PROFILE, prefix_cache=prefix_cache)

    def within_limits(engine: Engine) -> None:
        stats = engine.stats()
        assert 0 <= stats.kv_usage <= 1
        assert stats.num_running <= config.max_num_seqs
        assert stats.num_running + stats.num_waiting == engine.num_unfinished
        if config.max_num_queued_reqs is not None:
            assert engine.num_unfinished <= config.max_num_queued_reqs

    events = drive(engine, load, [], within_limits)
    finished = [owner for kind, _, owner in events if kind is EventKind.FINISHED]
    started = [owner for kind, _, owner in events if kind is EventKind.FIRST_TOKEN]
    stats = engine.stats()
    assert len(finished) == len(set(finished)) == stats.num_finished
    assert len(started) == len(set(started))
    assert set(finished) <= set(started)
    assert stats.num_finished + stats.num_aborted + stats.num_rejected == len(load)
    assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (0, 0, 0)
    if config.reserve_output:
        assert stats.num_preemptions == 0


@settings(max_examples=60, deadline=None)
@given(arrivals)
def test_tokens_are_conserved(load):
    """Without aborts, the tokens counted are the tokens asked for, preemptions or not."""
    config = EngineConfig(max_num_seqs=6, max_num_batched_tokens=16, num_gpu_blocks=25, block_size=8, max_model_len=192)
    engine = Engine(config, PROFILE)
    sequences = [Sequence(arrival.prompt, arrival.output) for arrival in load]
    now_s = 0.0
    for arrival, sequence in zip(load, sequences, strict=True):
        now_s += arrival.gap_s
        engine.add(sequence, now_s)
    while (next_s := engine.next_event_s()) != float("inf"):
        engine.advance(next_s)
    assert engine.stats().generation_tokens == sum(sequence.output_tokens for sequence in sequences)
    assert engine.stats().prompt_tokens == sum(sequence.prompt_tokens for sequence in sequences)
    assert all(sequence.state is SequenceState.FINISHED for sequence in sequences)
    assert all(sequence.generated == sequence.output_tokens for sequence in sequences)
