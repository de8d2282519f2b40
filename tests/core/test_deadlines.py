"""How long a request is held and when it is due: the class's word and the client's headers."""

from __future__ import annotations

import math

import pytest

from prelude_proxy.core.deadlines import Patience, patience_of
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.errors import ClientError

PLAIN = ClassSpec("standard", 0, queue_timeout_s=60.0)
WISHING = ClassSpec("standard", 0, queue_timeout_s=60.0, ttft_slo_ms=2000.0)
STRICT = ClassSpec("standard", 0, queue_timeout_s=60.0, ttft_slo_ms=2000.0, shed=True)
DEADLINE, SLO, NO_QUEUE = "x-prelude-deadline-ms", "x-llm-d-slo-ttft-ms", "x-prelude-no-queue"
ARRIVAL, NOW = 100.0, 100.5


@pytest.mark.parametrize(
    ("spec", "headers", "expected"),
    [
        (PLAIN, {}, Patience(160.5)),
        (PLAIN, {DEADLINE: "1500"}, Patience(101.5, 101.5, sheds=True)),
        (PLAIN, {DEADLINE: "0"}, Patience(100.0, 100.0, sheds=True)),
        (PLAIN, {DEADLINE: "90000"}, Patience(160.5, 190.0, sheds=True)),
        (PLAIN, {SLO: "250.5"}, Patience(160.5, 100.2505)),
        (WISHING, {}, Patience(160.5, 102.0)),
        (WISHING, {SLO: "500"}, Patience(160.5, 100.5)),
        (STRICT, {}, Patience(102.0, 102.0, sheds=True)),
        (STRICT, {SLO: "500"}, Patience(100.5, 100.5, sheds=True)),
        (STRICT, {DEADLINE: "9000"}, Patience(109.0, 109.0, sheds=True)),
        (PLAIN, {NO_QUEUE: "1"}, Patience(100.0)),
        (PLAIN, {NO_QUEUE: "False"}, Patience(160.5)),
        (PLAIN, {NO_QUEUE: "yes", DEADLINE: "1500"}, Patience(100.0, 101.5, sheds=True)),
    ],
)
def test_patience(spec, headers, expected):
    """Time counts from arrival; a deadline of the client sheds, a wish only where the class says so."""
    patience = patience_of(spec, headers, ARRIVAL, NOW)
    assert patience.deadline == pytest.approx(expected.deadline)
    assert patience.due == (math.inf if expected.due == math.inf else pytest.approx(expected.due))
    assert patience.sheds is expected.sheds


@pytest.mark.parametrize("name", [DEADLINE, SLO])
@pytest.mark.parametrize("value", ["soon", "", "nan", "inf", "1e999", "-1", "0x10", "1,5", "\udcff" * 90])
def test_what_is_no_time_is_the_clients_fault(name, value):
    """The message names header and value, cut and fit to be shown."""
    with pytest.raises(ClientError) as caught:
        patience_of(PLAIN, {name: value}, ARRIVAL, NOW)
    assert caught.value.status == 400
    assert caught.value.param == name
    assert name in str(caught.value)
    assert len(str(caught.value).encode("ascii")) < 400
