"""One finished exchange → metrics and one access record. Called once a request, in the journey's `finally`."""

from __future__ import annotations

from typing import Any

from prelude_proxy.core.outcome import Outcome
from prelude_proxy.core.tally import count
from prelude_proxy.exchange import Exchange
from prelude_proxy.judge import Judge
from prelude_proxy.logs import AccessLog
from prelude_proxy.metrics import Metrics

_ADMIT_LABEL = {
    Outcome.REJECTED_SATURATED: "rejected",
    Outcome.EXPIRED: "expired",
    Outcome.UNMEETABLE: "unmeetable",
    Outcome.NO_ENDPOINTS: "no_endpoints",
    Outcome.SHUTTING_DOWN: "shutting_down",
}


class Recorder:
    """Keeps the books of the data path."""

    def __init__(self, metrics: Metrics, judge: Judge, access_log: AccessLog | None) -> None:
        self._metrics = metrics
        self._judge = judge
        self._access_log = access_log

    def finished(self, exchange: Exchange) -> None:
        """One call a request, whatever happened to it."""
        metrics = self._metrics
        name, outcome = exchange.class_name, exchange.outcome
        model = metrics.model_label(exchange.facts.model if exchange.facts else None)
        count(metrics.requests, name, model, exchange.backend or "", outcome.label)
        if exchange.verdict is not None:
            self._measure(exchange, name)
        if outcome is Outcome.CLIENT_GONE and exchange.dispatched_at:
            count(metrics.upstream_aborts, "stream" if exchange.first_token_at else "prefill")
        if self._access_log is not None:
            self._access_log.write(self._record(exchange))

    def retried(self, exchange: Exchange, reason: Outcome) -> None:
        """Another attempt is about to be made."""
        count(self._metrics.retries, exchange.class_name, reason.label)

    def promoted(self, exchange: Exchange, klass: int) -> None:
        """The stream outgrew its class; `exchange.promoted_to` still says where it was."""
        before = exchange.promoted_to if exchange.promoted_to is not None else None
        origin = exchange.class_name if before is None else self._judge.classes[before].name
        count(self._metrics.promotions, origin, self._judge.classes[klass].name)

    def _measure(self, exchange: Exchange, name: str) -> None:
        metrics, verdict = self._metrics, exchange.verdict
        assert verdict is not None
        tally = metrics.classes[name]
        count(metrics.reasons, name, verdict.classification.reason)
        metrics.classification_s.observe(exchange.classify_s)
        if exchange.ready_at:
            count(
                metrics.admits, name, _ADMIT_LABEL.get(exchange.outcome, "dispatched" if exchange.backend else "left")
            )
            metrics.overhead_s.observe(exchange.ready_at - exchange.arrival)
        if exchange.ready_at and exchange.dispatched_at:
            tally.queue_wait_s.observe(exchange.held_s)
        if exchange.first_token_at:
            tally.ttft_s.observe(exchange.first_token_at - exchange.arrival)
        if exchange.outcome is not Outcome.OK:
            return
        tally.duration_s.observe(exchange.finished_at - exchange.arrival)
        tally.predicted_tokens.observe(verdict.classification.expected_tokens)
        tokens = exchange.output_tokens
        if not tokens:
            return
        tally.actual_tokens.observe(tokens)
        if verdict.classification.forecast is not None:
            count(metrics.confusion, verdict.classification.likeliest, self._judge.class_of_tokens(tokens))
        if exchange.is_streamed and tokens > 1 and exchange.first_token_at:
            gap_s = (exchange.finished_at - exchange.first_token_at) / (tokens - 1)
            tally.itl_s.observe_many(gap_s, tokens - 1)

    def _record(self, exchange: Exchange) -> dict[str, Any]:
        facts = exchange.facts
        classification = exchange.verdict.classification if exchange.verdict is not None else None
        return {
            "ts": exchange.started_at,
            "id": exchange.id,
            "peer": exchange.peer,
            "method": exchange.method,
            "path": exchange.path,
            "status": exchange.status,
            "outcome": exchange.outcome.label,
            "model": facts.model if facts is not None else None,
            "tenant": facts.tenant if facts is not None else None,
            "stream": exchange.is_streamed if facts is not None else None,
            "prompt_tokens": facts.prompt_tokens if facts is not None else None,
            "class": classification.name if classification is not None else None,
            "reason": classification.reason if classification is not None else None,
            "expected_tokens": round(classification.expected_tokens) if classification is not None else None,
            "output_tokens": exchange.output_tokens,
            "backend": exchange.backend,
            "attempts": exchange.num_attempts,
            "queue_ms": round(exchange.held_s * 1e3, 1),
            "ttft_ms": _ms(exchange.arrival, exchange.first_token_at),
            "duration_ms": _ms(exchange.arrival, exchange.finished_at),
            "request_bytes": exchange.request_bytes,
            "response_bytes": exchange.response_bytes,
            "error": exchange.error,
            "prompt": exchange.prompt,
        }


def _ms(start: float, end: float) -> float | None:
    return round((end - start) * 1e3, 1) if end else None
