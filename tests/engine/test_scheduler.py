import pytest

from prelude_proxy.engine.model import EventKind, SchedulingPolicy, SequenceState


def test_tokens_come_one_a_step_at_the_cost_of_the_batch(make_engine, seq, finish):
    """Two requests share each step: 1 ms and 0.1 ms for each of them."""
    engine = make_engine()
    first, second = seq(10, 3), seq(10, 5)
    engine.add(first, 0.0)
    engine.add(second, 0.0)
    finish(engine)
    assert (first.first_token_s, first.end_s) == pytest.approx((0.0012, 0.0036))
    assert second.end_s == pytest.approx(0.0036 + 2 * 0.0011)


def test_an_arrival_waits_for_the_step_in_progress(make_engine, seq):
    """A step once begun is not changed: who arrives during it is prefilled in the next."""
    engine = make_engine()
    engine.add(seq(10, 100), 0.0)
    engine.advance(0.0015)  # the second step lasts from 1.1 to 2.2 ms
    late = seq(10, 1)
    engine.add(late, 0.0015)
    engine.advance(0.01)
    assert late.first_token_s == pytest.approx(0.0022 + 0.0012)


def test_an_idle_engine_starts_at_the_arrival(make_engine, seq, finish):
    """Idle time is not made up for."""
    engine = make_engine()
    request = seq(10, 1)
    engine.add(request, 5.0)
    finish(engine)
    assert request.end_s == pytest.approx(5.0011)


def test_the_batch_is_bounded_and_the_rest_waits_in_order(make_engine, seq, finish):
    """max_num_seqs run, the others follow first come first served."""
    engine = make_engine(max_num_seqs=2)
    requests = [seq(8, 4) for _ in range(5)]
    for request in requests:
        engine.add(request, 0.0)
    engine.advance(0.002)
    assert (engine.stats().num_running, engine.stats().num_waiting) == (2, 3)
    finish(engine)
    firsts = [request.first_token_s for request in requests]
    assert firsts == sorted(firsts)
    assert firsts[2] > requests[0].end_s - 1e-9


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoding(make_engine, seq):
    """Decodes take their token of the budget first; the prompt gets the rest, step by step."""
    engine = make_engine(max_num_batched_tokens=16)
    talker, reader = seq(4, 100), seq(40, 2)
    engine.add(talker, 0.0)
    engine.advance(0.0011)
    engine.add(reader, 0.0011)
    for computed in (15, 30):
        engine.step()
        assert reader.computed == computed
    engine.step()
    assert reader.state is SequenceState.DECODING
    assert engine.generated(talker) == 4


def test_exhausted_kv_preempts_the_last_admitted_and_recomputes_it(make_engine, seq, finish):
    """The newcomer loses its blocks, waits at the head, and is prefilled again with what it had written."""
    engine = make_engine(num_gpu_blocks=9, max_model_len=128)  # 8 blocks of 16: 128 tokens
    old, young, waiting = seq(30, 90), seq(30, 60), seq(30, 2)
    for request in (old, young):
        engine.add(request, 0.0)
    engine.advance(0.002)
    engine.add(waiting, 0.002)
    events = finish(engine)
    preempted = [event.sequence for event in events if event.kind is EventKind.PREEMPTED]
    assert young in preempted
    assert old not in preempted
    assert old.end_s < young.end_s
    assert young.first_token_s < old.end_s  # it had begun before it was thrown out
    assert engine.stats().num_preemptions == len(preempted) == young.num_preemptions + waiting.num_preemptions
    assert engine.stats().kv_usage == 0


def test_nothing_is_admitted_in_a_step_that_preempts(make_engine, seq):
    """The blocks a preemption frees are for the batch; the queue, however urgent, is served a step later."""
    engine = make_engine(num_gpu_blocks=9, max_model_len=128, policy=SchedulingPolicy.PRIORITY)
    for request in (seq(60, 60, priority=5), seq(60, 60, priority=5)):  # 4 blocks each: none is left
        engine.add(request, 0.0)
    engine.advance(0.003)
    urgent = seq(4, 4, priority=0)
    engine.add(urgent, 0.003)
    while not any(event.kind is EventKind.PREEMPTED for event in engine.step()):
        assert urgent.state is SequenceState.WAITING
    assert (engine.stats().num_running, urgent.state) == (1, SequenceState.WAITING)
    engine.step()
    assert urgent.first_token_s is not None


def test_priority_orders_the_queue_and_picks_the_victim(make_engine, seq, finish):
    """Lower numbers go first; among the running the highest number is preempted, whoever came last."""
    engine = make_engine(max_num_seqs=2, num_gpu_blocks=9, max_model_len=128, policy=SchedulingPolicy.PRIORITY)
    batch, urgent = seq(30, 90, priority=9), seq(30, 60, priority=0)
    low, high = seq(4, 2, priority=5), seq(4, 2, priority=1)
    for request in (batch, urgent, low, high):
        engine.add(request, 0.0)
    finish(engine)
    assert batch.num_preemptions > 0
    assert urgent.num_preemptions == 0
    assert high.first_token_s < low.first_token_s


def test_a_prompt_enters_only_when_all_of_it_fits(make_engine, seq):
    """The whole prompt must have room, though only its first chunk is allocated; who is behind it waits too."""
    engine = make_engine(num_gpu_blocks=9, max_model_len=128, max_num_batched_tokens=16)
    engine.add(seq(60, 60), 0.0)
    engine.advance(0.01)
    big, small = seq(100, 2), seq(2, 2)
    engine.add(big, 0.01)
    engine.add(small, 0.01)
    engine.advance(0.02)
    assert big.state is small.state is SequenceState.WAITING


def test_admission_counts_waiting_and_running(make_engine, seq):
    """max_num_queued_reqs bounds what is in the engine, as vLLM's does."""
    engine = make_engine(max_num_queued_reqs=3)
    assert [engine.add(seq(4, 4), 0.0) for _ in range(4)] == [True, True, True, False]
    assert engine.stats().num_rejected == 1


def test_reserved_output_is_never_preempted(make_engine, seq, finish):
    """TGI admits a request with room for all its max_tokens, so fewer run and none is thrown out."""
    engine = make_engine(num_gpu_blocks=9, max_model_len=128, reserve_output=True)
    requests = [seq(30, 10, reserve_tokens=34) for _ in range(3)]
    for request in requests:
        engine.add(request, 0.0)
    engine.advance(0.002)
    assert engine.stats().num_running == 2
    assert engine.stats().kv_usage == 1.0
    finish(engine)
    assert engine.stats().num_preemptions == 0


@pytest.mark.parametrize("when_s", [0.0, 0.0012, 0.004])
def test_abort_frees_slot_and_blocks(make_engine, seq, finish, when_s):
    """Waiting, prefilling or decoding: what is aborted is gone, and the next in the queue takes its place."""
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=4)
    gone, next_one = seq(12, 50), seq(4, 2)
    engine.add(gone, 0.0)
    engine.add(next_one, 0.0)
    engine.advance(when_s)
    assert engine.abort(gone, when_s)
    assert not engine.abort(gone, when_s)
    finish(engine)
    assert next_one.end_s < 0.01
    stats = engine.stats()
    assert (stats.num_aborted, stats.num_finished, stats.kv_usage) == (1, 1, 0)


def test_a_known_prefix_is_not_prefilled_again(make_engine, seq, finish):
    """Cached blocks count as computed, all but the last token; hits and queries are counted in tokens."""
    engine = make_engine(prefix_cache=True, max_num_batched_tokens=16)
    prefix = (11, 22, 33)
    first = seq(48, 1, prefix=prefix)
    engine.add(first, 0.0)
    finish(engine)
    second = seq(48, 1, prefix=prefix)
    engine.add(second, 1.0)
    finish(engine)
    assert first.end_s == pytest.approx(3 * 0.0011)
    assert second.end_s - 1.0 == pytest.approx(0.0011)
    assert second.cached_tokens == 32  # the third block holds the last token
    assert (engine.stats().prefix_queries_tokens, engine.stats().prefix_hits_tokens) == (96, 32)


def test_a_request_longer_than_the_context_is_refused(make_engine, seq):
    """It could never end."""
    with pytest.raises(ValueError, match="max_model_len 512"):
        make_engine().add(seq(500, 13), 0.0)
    with pytest.raises(ValueError, match="at least one"):
        make_engine().add(seq(5, 0), 0.0)


def test_counters_tell_what_was_done(make_engine, seq, finish):
    """Prompt and output tokens, steps and busy time add up."""
    engine = make_engine()
    for _ in range(3):
        engine.add(seq(10, 7), 0.0)
    finish(engine)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.num_finished, stats.num_steps) == (30, 21, 3, 7)
    assert stats.busy_s == pytest.approx(7 * 0.0013)
