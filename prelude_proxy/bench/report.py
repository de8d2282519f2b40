"""Records in, figures out: percentiles a class, goodput, throughput, rejects, fairness; medians over rounds; JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

from prelude_proxy.bench.records import GapHistogram, RequestRecord, RunResult
from prelude_proxy.bench.workload import CLASSES

BUSY_S = 0.05
"""A client that is later than this itself cannot vouch for its figures."""
DEFAULT_SLO_S: Mapping[str, float] = {"oneshot": 0.5, "fast": 0.5, "standard": 2.0, "deep": 10.0}
"""Time to first token within which a request of the class counts as good."""
REJECT_STATUSES = frozenset({429, 503})
_MAX_ERROR_KINDS = 20


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of one quantity, in seconds; None where nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None
    mean: float | None


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """One class in one run."""

    sent: float
    ok: float
    ttft_s: Spread
    """From the scheduled arrival; only of requests that were answered."""
    e2e_s: Spread
    itl_s: Spread
    """Gaps between tokens, over all gaps of the class."""
    goodput: float | None
    """Share of all sent requests whose first token came within the SLO and that were answered whole."""
    as_class: float | None
    """Share that the proxy served as this class (None: it did not say)."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One target: one run, or the medians of several."""

    target: str
    rounds: int
    sent: float
    ok: float
    rejected: float
    """Answered 429 or 503."""
    failed: float
    """Neither answered whole nor rejected."""
    tokens_per_s: float
    makespan_s: float
    max_late_s: float
    """Longest delay of a request in the client itself."""
    goodput: float | None
    jain_goodput: float | None
    """Jain's index over the tenants' goodputs; None with fewer than two tenants."""
    jain_served: float | None
    """Jain's index over the share of each tenant's wanted tokens that was finished while load still arrived."""
    classes: dict[str, ClassSummary]
    errors: dict[str, int]


def quantile(values: Sequence[float], q: float) -> float | None:
    """Nearest-rank quantile; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


def spread(values: Sequence[float]) -> Spread:
    """Percentiles and mean of `values`."""
    mean = sum(values) / len(values) if values else None
    return Spread(quantile(values, 0.5), quantile(values, 0.95), quantile(values, 0.99), mean)


def jain_index(shares: Sequence[float]) -> float | None:
    """Jain's fairness index (Σx)² / (n·Σx²): 1 when all are equal, 1/n when one has all (Jain, Chiu, Hawe 1984)."""
    squares = sum(share * share for share in shares)
    if len(shares) < 2:
        return None
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def is_good(record: RequestRecord, slo_s: Mapping[str, float]) -> bool:
    """Whether the request was answered whole with its first token within its class's SLO."""
    limit_s = slo_s.get(record.klass)
    return record.ok and (limit_s is None or (record.ttft_s is not None and record.ttft_s <= limit_s))


def summarise(result: RunResult, slo_s: Mapping[str, float] = DEFAULT_SLO_S) -> RunSummary:
    """The figures of one run."""
    records = result.records
    done = [record for record in records if record.ok]
    rejected = sum(record.status in REJECT_STATUSES for record in records)
    by_tenant = grouped(records, lambda record: record.tenant)
    return RunSummary(
        target=result.target,
        rounds=1,
        sent=len(records),
        ok=len(done),
        rejected=rejected,
        failed=len(records) - len(done) - rejected,
        tokens_per_s=sum(record.tokens for record in done) / result.makespan_s if result.makespan_s else 0.0,
        makespan_s=result.makespan_s,
        max_late_s=result.max_late_s,
        goodput=goodput_of(records, slo_s),
        jain_goodput=jain_index([goodput_of(group, slo_s) or 0.0 for group in by_tenant.values()]),
        jain_served=jain_index([_served_share(group, result.window_s) for group in by_tenant.values()]),
        classes={
            name: _class_summary(group, result.gaps.get(name), slo_s)
            for name, group in sorted(
                grouped(records, lambda record: record.klass).items(), key=lambda pair: class_order(pair[0])
            )
        },
        errors=_errors(records),
    )


def class_order(name: str) -> tuple[int, str]:
    """Sort key: the known classes in their order, then others by name."""
    return (CLASSES.index(name) if name in CLASSES else len(CLASSES), name)


def _class_summary(
    records: Sequence[RequestRecord], gaps: GapHistogram | None, slo_s: Mapping[str, float]
) -> ClassSummary:
    done = [record for record in records if record.ok]
    told = [record for record in done if record.served_as is not None]
    gap_means = [record.gap_mean_s for record in done if record.gap_mean_s]
    return ClassSummary(
        sent=len(records),
        ok=len(done),
        ttft_s=spread([record.ttft_s for record in done if record.ttft_s is not None]),
        e2e_s=spread([record.e2e_s for record in done]),
        itl_s=Spread(
            p50=gaps.quantile(0.50) if gaps else None,
            p95=gaps.quantile(0.95) if gaps else None,
            p99=gaps.quantile(0.99) if gaps else None,
            mean=sum(gap_means) / len(gap_means) if gap_means else None,
        ),
        goodput=goodput_of(records, slo_s),
        as_class=sum(record.served_as == record.klass for record in told) / len(told) if told else None,
    )


def goodput_of(records: Sequence[RequestRecord], slo_s: Mapping[str, float] = DEFAULT_SLO_S) -> float | None:
    """Share of `records` that are good; None of none."""
    return sum(is_good(record, slo_s) for record in records) / len(records) if records else None


def _served_share(records: Sequence[RequestRecord], window_s: float) -> float:
    wanted = sum(record.wanted_tokens for record in records)
    served = sum(r.wanted_tokens for r in records if r.ok and r.scheduled_s + r.e2e_s <= window_s)
    return served / wanted if wanted else 0.0


def grouped(
    records: Iterable[RequestRecord], key: Callable[[RequestRecord], str | None]
) -> dict[str, list[RequestRecord]]:
    """Records by what `key` says of them; those of which it says None are left out."""
    groups: dict[str, list[RequestRecord]] = {}
    for record in records:
        name = key(record)
        if name is not None:
            groups.setdefault(name, []).append(record)
    return groups


def _errors(records: Iterable[RequestRecord]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        if record.error:
            kind = record.error[:120]
            kind = kind if kind in counts or len(counts) < _MAX_ERROR_KINDS else "other"
            counts[kind] = counts.get(kind, 0) + 1
    return counts


# --- medians over rounds ----------------------------------------------------------------------------------------------


def median_summary(rounds: Sequence[RunSummary]) -> RunSummary:
    """Field by field the median of the rounds of one target; errors are added up."""
    if len(rounds) == 1:
        return rounds[0]
    errors: dict[str, int] = {}
    for summary in rounds:
        for kind, count in summary.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    names = sorted({name for summary in rounds for name in summary.classes}, key=class_order)
    return RunSummary(
        target=rounds[0].target,
        rounds=len(rounds),
        classes={name: _median_class([r.classes[name] for r in rounds if name in r.classes]) for name in names},
        errors=errors,
        **_medians(rounds, skip=("target", "rounds", "classes", "errors")),
    )


def _median_class(summaries: Sequence[ClassSummary]) -> ClassSummary:
    return ClassSummary(
        ttft_s=Spread(**_medians([summary.ttft_s for summary in summaries])),
        e2e_s=Spread(**_medians([summary.e2e_s for summary in summaries])),
        itl_s=Spread(**_medians([summary.itl_s for summary in summaries])),
        **_medians(summaries, skip=("ttft_s", "e2e_s", "itl_s")),
    )


def _medians(items: Sequence[Any], skip: Sequence[str] = ()) -> dict[str, Any]:
    medians: dict[str, Any] = {}
    for spec in fields(items[0]):
        if spec.name not in skip:
            known = [value for item in items if (value := getattr(item, spec.name)) is not None]
            medians[spec.name] = median(known) if known else None
    return medians


def as_json(
    parameters: Mapping[str, Any], medians: Sequence[RunSummary], rounds: Mapping[str, Sequence[RunSummary]]
) -> dict[str, Any]:
    """The whole report as plain data: what was asked, medians a target, and every round."""
    return {
        "parameters": dict(parameters),
        "targets": {summary.target: asdict(summary) for summary in medians},
        "rounds": {name: [asdict(summary) for summary in summaries] for name, summaries in rounds.items()},
    }
