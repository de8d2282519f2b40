"""The engine's own queue: what sits here can no longer be reordered by anyone in front of the engine."""

from __future__ import annotations

import heapq
from collections import deque

from prelude_proxy.engine.model import SchedulingPolicy, Sequence, SequenceState


class WaitingQueue:
    """First come first served, or by (priority, arrival). Aborted entries stay until they surface, so abort is O(1)."""

    __slots__ = ("_fcfs", "_heap", "_policy", "count")

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        self._fcfs: deque[Sequence] = deque()
        self._heap: list[tuple[int, float, int, Sequence]] = []
        self.count = 0

    def push(self, sequence: Sequence) -> None:
        """A new arrival."""
        self.count += 1
        if self._policy is SchedulingPolicy.FCFS:
            self._fcfs.append(sequence)
        else:
            heapq.heappush(self._heap, (sequence.priority, sequence.arrival_s, sequence.serial, sequence))

    def push_back(self, sequence: Sequence) -> None:
        """A preempted request returns: to the head of the line, or to the place its priority gives it."""
        if self._policy is SchedulingPolicy.FCFS:
            self.count += 1
            self._fcfs.appendleft(sequence)
        else:
            self.push(sequence)

    def peek(self) -> Sequence | None:
        """Who would be admitted next."""
        if self._policy is SchedulingPolicy.FCFS:
            fcfs = self._fcfs
            while fcfs and fcfs[0].state is not SequenceState.WAITING:
                fcfs.popleft()
            return fcfs[0] if fcfs else None
        heap = self._heap
        while heap and heap[0][3].state is not SequenceState.WAITING:
            heapq.heappop(heap)
        return heap[0][3] if heap else None

    def pop(self) -> Sequence:
        """Take what `peek` just showed."""
        self.count -= 1
        if self._policy is SchedulingPolicy.FCFS:
            return self._fcfs.popleft()
        return heapq.heappop(self._heap)[3]

    def discard(self, sequence: Sequence) -> None:
        """`sequence` was aborted; its entry is dropped when it surfaces."""
        assert sequence.state is SequenceState.ABORTED
        self.count -= 1
