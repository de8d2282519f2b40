"""The engine: continuous batching with chunked prefill, paged KV and preemption, in virtual time.

One step is `schedule → run → postprocess`, the order and the rules of vLLM's V1 scheduler (0.32):

- every running request that decodes gets one token; a prefill in progress gets what is left of the token budget;
- then waiting requests are admitted in order while there is budget, a batch slot, and KV room for their whole prompt;
- a decode step that finds no KV block preempts: the last admitted request (FCFS) or the one with the highest
  (priority, arrival) loses its blocks, returns to the head of the queue and is prefilled again, output included;
- nothing is admitted in a step that preempted.

**Time** is passed in, in seconds, and kept in whole nanoseconds. A step in progress is fixed: who arrives during it
waits for the next one. Asking `next_event_s` begins the step.

**Fast-forward.** Between two scheduling events (an arrival that could be admitted, an abort, an end, KV exhausted) each
step does the same: all D decoding requests gain a token, so the context grows by D and the step time by D·kv_read. The
i-th of k such steps takes c + i·g, k of them k·c + g·k(k−1)/2, and how many end by a time t is the root of a quadratic,
exact in integers. k is bounded by the nearest end (a heap of step numbers) and by the KV blocks (`DecodeBlocks`, closed
form too). A request is touched when it is admitted, ends, or is preempted: never in between. So a fleet simulation
costs a few events a request, whatever the number of tokens, and gives to the nanosecond what stepping gives
(tests/engine/test_fast_forward.py).

Not modelled: speculative decoding, LoRA, pipeline parallelism, KV transfer, multi-modal encoders, several sequences of
one request sharing blocks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import KeysView
from dataclasses import dataclass

from prelude_proxy.engine.blocks import DecodeBlocks
from prelude_proxy.engine.model import (
    NS_PER_S,
    EngineConfig,
    EngineProfile,
    EngineStats,
    Event,
    EventKind,
    SchedulingPolicy,
    Sequence,
    SequenceState,
    StepCosts,
)
from prelude_proxy.engine.plan import Plan
from prelude_proxy.engine.prefix import PrefixCache
from prelude_proxy.engine.waiting import WaitingQueue

NEVER_S = math.inf


@dataclass(slots=True)
class _Counters:
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    finished: int = 0
    aborted: int = 0
    rejected: int = 0
    busy_ns: int = 0


class Engine:
    """One engine. `add` and `abort` put requests in and take them out, `advance` lets time pass."""

    __slots__ = (
        "_clock_ns",
        "_costs",
        "_count",
        "_decode",
        "_ends",
        "_events",
        "_held_blocks",
        "_max_stretch",
        "_partial",
        "_plan",
        "_prefix",
        "_running",
        "_serial",
        "_steps",
        "_usable_blocks",
        "_waiting",
        "config",
        "profile",
    )

    def __init__(
        self, config: EngineConfig, profile: EngineProfile, *, prefix_cache: bool = False, max_stretch: int = 2**62
    ) -> None:
        """`max_stretch` bounds the steps skipped at once; 1 is plain stepping."""
        self.config = config
        self.profile = profile
        self._costs = StepCosts(profile)
        self._usable_blocks = config.usable_blocks
        self._prefix = PrefixCache(config.usable_blocks) if prefix_cache else None
        self._max_stretch = max_stretch
        self._waiting = WaitingQueue(config.policy)
        self._running: dict[Sequence, None] = {}  # in order of admission; the last is the first to be preempted
        self._decode = DecodeBlocks(config.block_size)
        self._ends: list[tuple[int, int, Sequence]] = []  # heap of (step number, serial, who then ends)
        self._partial: Sequence | None = None  # the one prefill that needs more than one step, if any
        self._held_blocks = 0  # by prefills; under reserve_output by all
        self._plan: Plan | None = None
        self._clock_ns = 0
        self._steps = 0
        self._serial = 0
        self._events: list[Event] = []
        self._count = _Counters()

    # --- the driver's side --------------------------------------------------------------------------------------------

    @property
    def num_unfinished(self) -> int:
        """Requests in the engine, waiting and running."""
        return self._waiting.count + len(self._running)

    @property
    def clock_s(self) -> float:
        """End of the last completed step."""
        return self._clock_ns / NS_PER_S

    @property
    def num_steps(self) -> int:
        """Steps completed."""
        return self._steps

    @property
    def running(self) -> KeysView[Sequence]:
        """The batch, in order of admission."""
        return self._running.keys()

    def generated(self, sequence: Sequence) -> int:
        """Output tokens that `sequence` has now."""
        if sequence.state is SequenceState.DECODING:
            return sequence.offset + self._steps
        return sequence.generated

    def add(self, sequence: Sequence, now_s: float) -> bool:
        """A request arrives. False: rejected, the engine holds `max_num_queued_reqs` already.

        Raises:
            ValueError: the request is longer than `max_model_len`, or asks for no token.
        """
        if sequence.output_tokens < 1 or sequence.prompt_tokens < 1:
            raise ValueError("a request needs at least one prompt token and one output token")
        if sequence.prompt_tokens + sequence.output_tokens > self.config.max_model_len:
            raise ValueError(
                f"{sequence.prompt_tokens} prompt + {sequence.output_tokens} output tokens exceed "
                f"max_model_len {self.config.max_model_len}"
            )
        now_ns = self._catch_up(now_s)
        limit = self.config.max_num_queued_reqs
        if limit is not None and self.num_unfinished >= limit:
            self._count.rejected += 1
            return False
        self._serial += 1
        sequence.serial = self._serial
        sequence.arrival_s = now_s
        if len(self._running) < self.config.max_num_seqs:
            self._interrupt(now_ns)
        self._waiting.push(sequence)
        return True

    def abort(self, sequence: Sequence, now_s: float) -> bool:
        """Its client left: batch slot and KV blocks are free for the next step. False: it had ended already."""
        now_ns = self._catch_up(now_s)
        if sequence.state >= SequenceState.FINISHED:
            return False
        self._interrupt(now_ns)
        was_waiting = sequence.state is SequenceState.WAITING
        if not was_waiting:
            self._leave(sequence)
        sequence.state = SequenceState.ABORTED
        sequence.end_s = now_s
        if was_waiting:
            self._waiting.discard(sequence)
        self._count.aborted += 1
        return True

    def advance(self, until_s: float) -> list[Event]:
        """Complete every step that ends by `until_s`; what happened since the last call, in order of time."""
        self._advance(round(until_s * NS_PER_S))
        events = self._events
        if events:
            self._events = []
        return events

    def step(self) -> list[Event]:
        """Exactly one step from where the clock stands; nothing if there is no work."""
        plan = self._plan or self._schedule()
        if plan is not None:
            self._run(plan, 1)
            self._postprocess(plan)
        events, self._events = self._events, []
        return events

    def next_event_s(self) -> float:
        """When the next request starts to stream or ends, if none arrives before; infinity if there is no work.

        May be earlier than that (a prefill chunk, a preemption): advance to it and ask again.
        """
        plan = self._plan or self._schedule()
        return NEVER_S if plan is None else plan.end_ns(plan.steps) / NS_PER_S

    def next_step_s(self) -> float:
        """When the step in progress ends; infinity if there is no work."""
        plan = self._plan or self._schedule()
        return NEVER_S if plan is None else plan.end_ns(1) / NS_PER_S

    def stats(self) -> EngineStats:
        """What `/metrics` tells, as of the last completed step."""
        count = self._count
        return EngineStats(
            num_running=len(self._running),
            num_waiting=self._waiting.count,
            kv_usage=self._used_blocks(self._steps) / self._usable_blocks,
            num_preemptions=count.preemptions,
            prompt_tokens=count.prompt_tokens,
            generation_tokens=count.generation_tokens,
            prefix_queries_tokens=count.prefix_queries,
            prefix_hits_tokens=count.prefix_hits,
            num_finished=count.finished,
            num_aborted=count.aborted,
            num_rejected=count.rejected,
            num_steps=self._steps,
            busy_s=count.busy_ns / NS_PER_S,
        )

    # --- time ---------------------------------------------------------------------------------------------------------

    def _catch_up(self, now_s: float) -> int:
        now_ns = round(now_s * NS_PER_S)
        self._advance(now_ns)
        if self._plan is None and not self._running and not self._waiting.count:
            self._clock_ns = max(self._clock_ns, now_ns)  # it was idle
        return now_ns

    def _advance(self, until_ns: int) -> None:
        while True:
            plan = self._plan
            if plan is None:
                if self._clock_ns >= until_ns:
                    return
                plan = self._schedule()
                if plan is None:
                    return
            steps = plan.steps_until(until_ns)
            if steps == 0:
                return
            self._run(plan, steps)
            if plan.steps == 0:
                self._postprocess(plan)

    def _interrupt(self, now_ns: int) -> None:
        """Something changed: of the planned steps only the one in progress is certain."""
        plan = self._plan
        if plan is None:
            return
        if plan.is_open and plan.start_ns >= now_ns:
            self._plan = None
        else:
            plan.steps = 1

    # --- schedule → run → postprocess ---------------------------------------------------------------------------------

    def _schedule(self) -> Plan | None:
        if not self._running and not self._waiting.count:
            return None
        preempted = self._make_room()
        prefills: list[tuple[Sequence, int]] = []
        if self._partial is not None:
            preempted |= self._continue_prefill(self._partial, prefills)
        if not preempted:
            self._admit(prefills)
        self._plan = plan = self._price(prefills)
        if prefills or preempted or self._partial is not None:
            plan.is_open = False
        else:
            plan.steps = self._stretch()
        return plan

    def _run(self, plan: Plan, steps: int) -> None:
        end_ns = plan.end_ns(steps)
        self._count.busy_ns += end_ns - plan.start_ns
        self._count.generation_tokens += steps * self._decode.count
        self._steps += steps
        self._clock_ns = plan.start_ns = end_ns
        plan.first_ns += steps * plan.growth_ns
        plan.steps -= steps

    def _postprocess(self, plan: Plan) -> None:
        self._plan = None
        now_s = self.clock_s
        for sequence, tokens in plan.prefills:
            if sequence.state is SequenceState.PREFILLING:  # else aborted during the step
                self._prefilled(sequence, tokens, now_s)
        ends, steps = self._ends, self._steps
        while ends and ends[0][0] <= steps:
            at_step, _, sequence = heapq.heappop(ends)
            if _is_due(sequence, at_step):
                self._finish(sequence, now_s)

    # --- parts of schedule --------------------------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Preempt until every decoding request has a block for its next token."""
        if self.config.reserve_output:
            return False
        preempted = False
        while not self._decode.fits(self._steps + 1, self._usable_blocks - self._held_blocks):
            self._preempt(self._victim())
            preempted = True
        return preempted

    def _continue_prefill(self, sequence: Sequence, prefills: list[tuple[Sequence, int]]) -> bool:
        """Give the unfinished prefill the rest of the budget; preempts (itself, if it is last) when KV is short."""
        budget = self.config.max_num_batched_tokens - self._decode.count
        tokens = min(sequence.kv_tokens - sequence.computed, budget)
        if tokens == 0:
            return False
        preempted = False
        if not self.config.reserve_output:
            need = self._blocks(sequence.computed + tokens) - sequence.blocks
            while need > self._free_blocks():
                victim = self._victim()
                self._preempt(victim)
                preempted = True
                if victim is sequence:
                    return True
            sequence.blocks += need
            self._held_blocks += need
        prefills.append((sequence, tokens))
        return preempted

    def _admit(self, prefills: list[tuple[Sequence, int]]) -> None:
        budget = self.config.max_num_batched_tokens - self._decode.count - sum(tokens for _, tokens in prefills)
        max_running = self.config.max_num_seqs
        free: int | None = None
        while budget > 0 and len(self._running) < max_running:
            sequence = self._waiting.peek()
            if sequence is None:
                return
            if free is None:
                free = self._free_blocks()
            if self._blocks_to_admit(sequence) > free:
                return
            self._waiting.pop()
            tokens = self._enter(sequence, budget)
            prefills.append((sequence, tokens))
            free -= sequence.blocks
            budget -= tokens

    def _enter(self, sequence: Sequence, budget: int) -> int:
        """Move it from the queue to the batch; the tokens of its first prefill chunk."""
        cached = self._look_up(sequence)
        tokens = min(sequence.kv_tokens - cached, budget)
        sequence.computed = cached
        if self.config.reserve_output:
            sequence.blocks = self._blocks_to_admit(sequence)
        else:
            sequence.blocks = self._blocks(cached + tokens)
        self._held_blocks += sequence.blocks
        sequence.state = SequenceState.PREFILLING
        self._running[sequence] = None
        return tokens

    def _look_up(self, sequence: Sequence) -> int:
        if self._prefix is None:
            return 0
        size = self.config.block_size
        cached = self._prefix.hit_blocks(sequence.prefix, (sequence.kv_tokens - 1) // size) * size
        if sequence.num_preemptions == 0:
            self._count.prefix_queries += sequence.prompt_tokens
            self._count.prefix_hits += cached
            sequence.cached_tokens = cached
        return cached

    def _price(self, prefills: list[tuple[Sequence, int]]) -> Plan:
        decode = self._decode
        prefill_tokens = sum(tokens for _, tokens in prefills)
        pairs = sum(tokens * sequence.computed + tokens * (tokens + 1) // 2 for sequence, tokens in prefills)
        context = decode.tokens(self._steps + 1)
        first_ns = self._costs.step_ns(decode.count, context, len(prefills), prefill_tokens, pairs)
        return Plan(self._clock_ns, first_ns, self._costs.kv_read * decode.count, 1, prefills)

    def _stretch(self) -> int:
        """How many equal steps lie ahead: until someone ends or the KV cache is full."""
        ends = self._ends
        while not _is_due(ends[0][2], ends[0][0]):  # left by an abort or a preemption
            heapq.heappop(ends)
        steps = min(ends[0][0] - self._steps, self._max_stretch)
        if self.config.reserve_output:
            return steps
        return self._decode.max_steps(self._steps, steps, self._usable_blocks - self._held_blocks)

    # --- parts of postprocess -----------------------------------------------------------------------------------------

    def _prefilled(self, sequence: Sequence, tokens: int, now_s: float) -> None:
        sequence.computed += tokens
        if sequence.computed < sequence.kv_tokens:
            self._partial = sequence
            return
        if sequence is self._partial:
            self._partial = None
        if self._prefix is not None:
            self._prefix.insert(sequence.prefix)
        if not self.config.reserve_output:
            self._held_blocks -= sequence.blocks
            sequence.blocks = 0
        sequence.generated += 1
        sequence.offset = sequence.generated - self._steps
        sequence.state = SequenceState.DECODING
        self._decode.add(_ledger_start(sequence))
        self._count.generation_tokens += 1
        heapq.heappush(self._ends, (sequence.output_tokens - sequence.offset, sequence.serial, sequence))
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
            self._count.prompt_tokens += sequence.prompt_tokens
            self._events.append(Event(EventKind.FIRST_TOKEN, now_s, sequence))

    def _finish(self, sequence: Sequence, now_s: float) -> None:
        self._leave(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.end_s = now_s
        self._count.finished += 1
        self._events.append(Event(EventKind.FINISHED, now_s, sequence))

    # --- KV and membership --------------------------------------------------------------------------------------------

    def _leave(self, sequence: Sequence) -> None:
        """Out of the batch, with all its blocks. The caller sets the new state."""
        del self._running[sequence]
        if sequence.state is SequenceState.DECODING:
            sequence.generated = sequence.offset + self._steps
            self._decode.remove(_ledger_start(sequence))
        if sequence is self._partial:
            self._partial = None
        self._held_blocks -= sequence.blocks
        sequence.blocks = 0

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.state = SequenceState.WAITING
        sequence.computed = 0
        sequence.num_preemptions += 1
        self._count.preemptions += 1
        self._waiting.push_back(sequence)
        self._events.append(Event(EventKind.PREEMPTED, self.clock_s, sequence))

    def _victim(self) -> Sequence:
        if self.config.policy is SchedulingPolicy.FCFS:
            return next(reversed(self._running))
        return max(self._running, key=_urgency)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def _blocks_to_admit(self, sequence: Sequence) -> int:
        """The whole prompt must fit although only its first chunk is allocated (`scheduler_reserve_full_isl`)."""
        if self.config.reserve_output:
            reserve = max(sequence.reserve_tokens, sequence.output_tokens)
            return self._blocks(min(sequence.prompt_tokens + reserve, self.config.max_model_len))
        return self._blocks(sequence.kv_tokens)

    def _used_blocks(self, step: int) -> int:
        return self._held_blocks + (0 if self.config.reserve_output else self._decode.used(step))

    def _free_blocks(self) -> int:
        """Left for new tokens once every decoding request has room for the token of this step."""
        return self._usable_blocks - self._used_blocks(self._steps + 1)


def _ledger_start(sequence: Sequence) -> int:
    """The newest token's own keys are not cached yet: prompt + generated − 1 tokens are."""
    return sequence.prompt_tokens + sequence.offset - 1


def _is_due(sequence: Sequence, at_step: int) -> bool:
    """Whether a heap entry is still true: it decodes, and has not been preempted and resumed since."""
    return sequence.state is SequenceState.DECODING and sequence.output_tokens - sequence.offset == at_step


def _urgency(sequence: Sequence) -> tuple[int, float]:
    return sequence.priority, sequence.arrival_s
