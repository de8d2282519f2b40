from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.bench import report
from prelude_proxy.bench.records import GapHistogram, RequestRecord, RunResult


def record(klass: str = "fast", ttft_s: float = 0.1, *, at_s: float = 0.0, tenant: str | None = None) -> RequestRecord:
    """An answered request of 10 tokens."""
    return RequestRecord(
        klass, at_s, 5, 10, tenant, status=200, ok=True, ttft_s=ttft_s, e2e_s=ttft_s + 1.0, tokens=10, served_as="fast"
    )


def refused(status: int = 429, tenant: str | None = None) -> RequestRecord:
    """A request that was not served."""
    return RequestRecord("fast", 0.0, 5, 10, tenant, status=status, error=f"{status} no")


def run(records: list[RequestRecord], target: str = "a") -> RunResult:
    """A run of two seconds."""
    return RunResult(target, records, {}, makespan_s=2.0, window_s=1.5)


def test_counts_and_throughput() -> None:
    """Rejections and failures are told apart, and only whole answers count as tokens."""
    summary = report.summarise(run([record(), record("deep"), refused(), refused(503), refused(500), refused(0)]))
    assert (summary.sent, summary.ok, summary.rejected, summary.failed) == (6, 2, 2, 2)
    assert summary.tokens_per_s == 10.0
    assert summary.errors == {"429 no": 1, "503 no": 1, "500 no": 1, "0 no": 1}
    assert list(summary.classes) == ["fast", "deep"]


def test_percentiles_are_nearest_rank() -> None:
    """The 99 % value of a hundred is the second largest or the largest, never an invention."""
    times = [n / 1000 for n in range(1, 101)]
    fast = report.summarise(run([record(ttft_s=time_s) for time_s in times])).classes["fast"]
    assert (fast.ttft_s.p50, fast.ttft_s.p95, fast.ttft_s.p99) == (0.051, 0.096, 0.1)
    assert fast.ttft_s.mean == pytest.approx(0.0505)


def test_goodput_counts_lost_requests_as_missed() -> None:
    """A request that was refused is not within its SLO, however quick the others were."""
    summary = report.summarise(run([record(ttft_s=0.1), record(ttft_s=0.6), refused(), refused()]), {"fast": 0.5})
    assert summary.goodput == 0.25
    assert summary.classes["fast"].goodput == 0.25


def test_a_class_without_slo_is_good_when_whole() -> None:
    """Without a bound only the answer counts."""
    assert report.is_good(record(ttft_s=99), {})
    assert not report.is_good(refused(), {})


def test_share_served_as_the_true_class() -> None:
    """What the proxy said it took a request for is compared with what it was."""
    summary = report.summarise(run([record("fast"), record("deep")]))
    assert summary.classes["fast"].as_class == 1.0
    assert summary.classes["deep"].as_class == 0.0
    assert report.summarise(run([refused()])).classes["fast"].as_class is None


def test_jain_between_tenants() -> None:
    """One tenant served and one not is a half; equals are one; a single tenant has none."""
    assert report.summarise(run([record(tenant="a"), refused(tenant="b")])).jain_goodput == pytest.approx(0.5)
    assert report.summarise(run([record(tenant="a"), record(tenant="b")])).jain_goodput == pytest.approx(1.0)
    assert report.summarise(run([record(tenant="a")])).jain_goodput is None
    late = report.summarise(run([record(tenant="a"), record(tenant="b", at_s=1.4)]))
    assert late.jain_served == pytest.approx(0.5)


@given(st.lists(st.just(0.0) | st.floats(1e-3, 1e6), min_size=2, max_size=50))
def test_jain_is_between_its_bounds(shares: list[float]) -> None:
    """Never below 1/n, never above 1."""
    index = report.jain_index(shares)
    assert index is not None
    assert 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9


def test_medians_are_taken_field_by_field() -> None:
    """Three rounds give the middle figure of each; errors add up."""
    rounds = [report.summarise(run([record(ttft_s=time_s), refused()])) for time_s in (0.3, 0.1, 0.2)]
    medians = report.median_summary(rounds)
    assert medians.rounds == 3
    assert medians.classes["fast"].ttft_s.p50 == 0.2
    assert medians.classes["fast"].itl_s.p50 is None
    assert medians.errors == {"429 no": 3}
    assert report.median_summary(rounds[:1]) is rounds[0]


def test_the_report_is_json() -> None:
    """Everything in it can be written and read back."""
    summary = report.summarise(run([record(), refused()]))
    text = json.dumps(report.as_json({"seed": 1}, [summary], {"a": [summary]}))
    assert json.loads(text)["targets"]["a"] == asdict(summary)


def test_kinds_of_errors_are_bounded() -> None:
    """However many different messages come, the report names a few and counts the rest."""
    records = [RequestRecord("fast", 0.0, 1, 1, error=f"error {n}") for n in range(100)]
    errors = report.summarise(run(records)).errors
    assert len(errors) <= 21
    assert sum(errors.values()) == 100


@given(st.lists(st.floats(2e-5, 90), min_size=1, max_size=200), st.floats(0, 1))
def test_gap_quantiles_are_within_a_bin(gaps: list[float], q: float) -> None:
    """A histogram's quantile is within 10 % of the true one."""
    histogram = GapHistogram()
    histogram.add(gaps)
    exact = sorted(gaps)[min(len(gaps) - 1, int(q * len(gaps)))]
    assert histogram.quantile(q) == pytest.approx(exact, rel=0.1)


def test_an_empty_histogram_has_no_quantile() -> None:
    """Nothing counted, nothing said; extremes fall into the outer bins."""
    histogram = GapHistogram()
    histogram.add([])
    assert histogram.quantile(0.5) is None
    histogram.add([0.0, 1e9])
    assert int(histogram.counts.sum()) == 2
