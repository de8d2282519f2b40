from prelude_proxy.engine.model import SchedulingPolicy, Sequence, SequenceState
from prelude_proxy.engine.waiting import WaitingQueue


def queue_of(policy: SchedulingPolicy, priorities: list[int]) -> tuple[WaitingQueue, list[Sequence]]:
    queue, sequences = WaitingQueue(policy), []
    for serial, priority in enumerate(priorities):
        sequence = Sequence(1, 1, priority, arrival_s=float(serial), serial=serial)
        sequences.append(sequence)
        queue.push(sequence)
    return queue, sequences


def drain(queue: WaitingQueue) -> list[int]:
    order = []
    while queue.peek() is not None:
        order.append(queue.pop().serial)
    return order


def test_fcfs_keeps_the_order_and_takes_the_preempted_first():
    """Who was thrown out of the batch goes to the head."""
    queue, sequences = queue_of(SchedulingPolicy.FCFS, [0, 0, 0])
    first = queue.peek()
    assert queue.pop() is first is sequences[0]
    queue.push_back(first)
    assert drain(queue) == [0, 1, 2]


def test_priority_orders_by_number_then_arrival():
    """The preempted take the place their number gives them."""
    queue, _ = queue_of(SchedulingPolicy.PRIORITY, [3, 1, 2, 1])
    queue.push_back(Sequence(1, 1, 2, arrival_s=0.5, serial=9))
    assert drain(queue) == [1, 3, 9, 2, 0]


def test_an_aborted_entry_never_surfaces():
    """It counts no more at once, and is dropped when it would be next."""
    for policy in SchedulingPolicy:
        queue, sequences = queue_of(policy, [0, 0, 0])
        sequences[0].state = SequenceState.ABORTED
        queue.discard(sequences[0])
        assert queue.count == 2
        assert drain(queue) == [1, 2]
        assert queue.count == 0
