"""What this fleet's own traffic says about output lengths: learned online, bounded in memory, blended with the model.

Who sends a request tells more about the length of its answer than its text, and fifty answers of a workload tell more
than fifty thousand of another. Three experts are kept apart and weighed by how well each did lately for this tenant:

* *reweighted*: the trained model, each bin by how much more frequent it is with this tenant than the model says (the
  correction for shifted class shares of Saerens 2002); before anything is learned, the model as it is;
* *corrected*: the model moved, tilted and stretched by what it missed before - a line per tenant, then residual
  means of the finer keys (model, call site, opening, template, very prompt), each shrunk towards the coarser one;
* *history*: how long answers under these keys were, whatever else the prompt says, coarse to fine, starting from the
  model's forecast.

The weights are those of Hedge (Freund and Schapire 1997) on exponentially forgotten log-loss, mixed with the weights
over all tenants so that a new tenant starts from what worked elsewhere. Every memory forgets at the rate of its own
traffic: it remembers about `max_weight` answers, so it follows drift. No clock, no randomness, no text: keys are
64-bit hashes, salted anew in each process.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final

from librt.vecs import extend, vec
from mypy_extensions import i64

from prelude_proxy.core.bins import NUM_BINS, bin_of, mean_ln, shift, sigma_ln

EXPERTS: Final = ("reweighted", "corrected", "history")
_UNTRIED: Final = (1 / len(EXPERTS),) * len(EXPERTS)


@dataclass(frozen=True, slots=True)
class PriorSettings:
    """How fast the prior learns and forgets. Chosen on held-out sources; see the model card."""

    max_keys: int = 50_000
    max_weight: float = 200.0
    """Answers that a memory remembers."""
    shift_shrinkage: float = 10.0
    """Answers after which a key's residual mean counts half."""
    count_shrinkage: float = 4.0
    """Answers after which a key's own distribution counts half."""
    odds_shrinkage: float = 20.0
    """Answers after which a tenant's own bin frequencies count half."""
    slope_shrinkage: float = 12.0
    """Answers after which a tenant's own tilt counts half."""
    learning_rate: float = 0.35
    """Of Hedge, per nat of log-loss."""
    forgetting: float = 0.99
    """What a log-loss weighs after one more answer."""
    global_share: float = 0.2
    """Part of the weights over all tenants in a tenant's own."""
    min_stretch: float = 0.35
    max_stretch: float = 2.5


class Blend:
    """A forecast and what `OnlinePrior.learn` needs to learn from its outcome. Kept while a request is held: small."""

    __slots__ = ("blended", "mean", "static", "static_mean", "static_sigma", "support")

    def __init__(
        self,
        static: vec[float],
        blended: vec[float],
        *,
        mean: float,
        static_mean: float,
        static_sigma: float,
        support: float,
    ) -> None:
        self.static: vec[float] = static
        """Probability of each bin by the model alone."""
        self.mean = mean
        """Expected ln(tokens) of the blend."""
        self.static_mean = static_mean
        self.static_sigma = static_sigma
        self.blended: vec[float] = blended
        """Probability of each bin, all experts together."""
        self.support = support
        """Answers of the tenant that the experts have learned from."""


class _Line:
    """Exponentially weighted regression of actual on forecast ln(tokens), and how well each expert did."""

    __slots__ = (
        "counts",
        "cov",
        "forecasts",
        "intercept",
        "losses",
        "mean_x",
        "mean_y",
        "odds",
        "slope",
        "spread",
        "stretch",
        "trusted",
        "var",
        "weight",
    )

    def __init__(self) -> None:
        self.weight = 0.0
        self.mean_x = 0.0
        self.mean_y = 0.0
        self.var = 0.0
        self.cov = 0.0
        self.spread = 1.0
        """Mean squared error of the corrected forecast over the variance it was made with."""
        self.losses = [0.0] * len(EXPERTS)
        self.trusted = _UNTRIED
        """Weights of the experts that follow from the losses."""
        self.intercept = 0.0
        self.slope = 1.0
        """The line itself, shrunk: corrected mean = intercept + slope · forecast mean."""
        self.stretch = 1.0
        self.counts: vec[float] = vec[float]([0.0] * NUM_BINS)
        self.forecasts: vec[float] = vec[float]([0.0] * NUM_BINS)
        """Answers per bin, and the sum of the model's forecasts for them."""
        self.odds: vec[float] = vec[float]([1.0] * NUM_BINS)
        """By how much each bin is more frequent than the model says."""


class OnlinePrior:
    """Bounded, decaying memory of answer lengths by key. Keys are given coarse to fine; the first is the tenant's."""

    def __init__(self, settings: PriorSettings | None = None) -> None:
        self._settings = settings or PriorSettings()
        self._rows: OrderedDict[int, int] = OrderedDict()
        """Key to row, least recently learned first. A key's memory is one row of the four below."""
        self._counts: vec[float] = vec[float]([0.0] * (_FIRST_ROWS * NUM_BINS))
        """Answers per bin, row after row."""
        self._weights: list[float] = []
        self._residuals: list[float] = []
        """Mean of what coarser keys left unexplained, in ln(tokens)."""
        self._offsets: list[float] = []
        """The same shrunk: what the key adds to the corrected mean."""
        self._lines: OrderedDict[int, _Line] = OrderedDict()
        self._overall = _Line()

    def __len__(self) -> int:
        return len(self._rows)

    def weights(self) -> dict[str, float]:
        """Weight of each expert over all tenants."""
        return dict(zip(EXPERTS, self._overall.trusted, strict=True))

    def predict(self, keys: tuple[int, ...], static: vec[float]) -> Blend:
        """Blend the experts for a request under `keys` whose model forecast is `static`.

        The experts are linear in what they are made of, so their blend is put together directly; what each alone says
        is only worked out in `learn`, for the one bin that came true.
        """
        mean = mean_ln(static)
        sigma = sigma_ln(static, mean)
        line = self._lines.get(keys[0], self._overall)
        if line.weight == 0.0:
            return Blend(static, static, mean=mean, static_mean=mean, static_sigma=sigma, support=0.0)
        rows = self._known(keys)
        corrected, history = self._trust(line)
        blended = self._reweighted(line, static, 1.0 - corrected - history)
        if corrected > 0.0:
            moved = shift(static, mean, self._corrected_mean(line, rows, mean), line.stretch)
            _add(blended, corrected, moved, 0)
        if history > 0.0:
            left, parts = self._nested(rows, history)
            _add(blended, left, static, 0)
            self._add_counts(blended, rows, parts)
        support = 0.0 if line is self._overall else line.weight
        return Blend(static, blended, mean=mean_ln(blended), static_mean=mean, static_sigma=sigma, support=support)

    def learn(self, keys: tuple[int, ...], blend: Blend, tokens: float) -> None:
        """The answer to a request predicted as `blend` took `tokens`."""
        actual = log(max(tokens, 1.0))
        where: i64 = bin_of(tokens)
        line = self._line(keys[0])
        self._learn_losses(keys, line, blend, where)
        remaining = actual - (line.intercept + line.slope * blend.static_mean)
        for each in (line, self._overall):
            self._learn_line(each, blend.static_mean, actual)
            self._learn_odds(each, blend.static, where)
        rows = [self._row(key) for key in keys]
        for row in rows:
            self._count(row, where)
            remaining = self._learn_row(row, remaining)
        squared = min(remaining * remaining / (blend.static_sigma * blend.static_sigma), 16.0)
        for each in (line, self._overall):
            each.spread += (squared - each.spread) / (min(each.weight, 60.0) + 4.0)
            self._refresh(each)

    # --- experts ------------------------------------------------------------------------------------------------------

    def _trust(self, line: _Line) -> tuple[float, float]:
        """Weights of *corrected* and *history*, the rest being *reweighted*'s; negligible ones are left out."""
        share = self._settings.global_share
        _, corrected, history = [
            own + share * (all_ - own) for own, all_ in zip(line.trusted, self._overall.trusted, strict=True)
        ]
        return corrected if corrected > _NEGLIGIBLE else 0.0, history if history > _NEGLIGIBLE else 0.0

    def _known(self, keys: tuple[int, ...]) -> list[int]:
        """Rows of the keys that have been seen before, coarse to fine."""
        rows = []
        for key in keys:
            row = self._rows.get(key)
            if row is not None:
                rows.append(row)
        return rows

    def _reweighted(self, line: _Line, static: vec[float], weight: float) -> vec[float]:
        """`static` with each bin by its odds, a total of `weight`."""
        odds = line.odds
        reweighted = static[:NUM_BINS]
        total = 0.0
        for index in range(i64(NUM_BINS)):
            value = reweighted[index] * odds[index]
            reweighted[index] = value
            total += value
        _scale(reweighted, 0, weight / total)
        return reweighted

    def _corrected_mean(self, line: _Line, rows: list[int], mean: float) -> float:
        corrected = line.intercept + line.slope * mean
        for row in rows:
            corrected += self._offsets[row]
        return corrected

    def _add_counts(self, blended: vec[float], rows: list[int], parts: list[float]) -> None:
        """Add to each bin the answers counted in `rows`, each row's times its part."""
        for row, part in zip(rows, parts, strict=True):
            _add(blended, part, self._counts, _start_of(row))

    def _share(self, weight: float) -> float:
        return weight / (weight + self._settings.shift_shrinkage)

    def _nested(self, rows: list[int], weight: float) -> tuple[float, list[float]]:
        """Dirichlet means nested coarse to fine, the model's forecast at the root.

        Returns what a total of `weight` gives to the forecast, and to the counts of each row.
        """
        shrink = self._settings.count_shrinkage
        parts = []
        for row in reversed(rows):
            own = weight / (self._weights[row] + shrink)
            parts.append(own)
            weight = own * shrink
        parts.reverse()
        return weight, parts

    # --- learning -----------------------------------------------------------------------------------------------------

    def _learn_losses(self, keys: tuple[int, ...], line: _Line, blend: Blend, where: i64) -> None:
        """How likely each expert, as it stands, finds what came."""
        static = blend.static
        reweighted = corrected = history = static[where]
        if line.weight > 0.0:
            rows = self._known(keys)
            expected = self._corrected_mean(line, rows, blend.static_mean)
            corrected = shift(static, blend.static_mean, expected, line.stretch)[where]
            reweighted = self._reweighted(line, static, 1.0)[where]
            left, parts = self._nested(rows, 1.0)
            history = static[where] * left
            for row, part in zip(rows, parts, strict=True):
                history += part * self._counts[_start_of(row) + where]
        losses = [-log(max(value, 1e-3)) for value in (reweighted, corrected, history)]
        for each in (line, self._overall):
            each.losses = [self._settings.forgetting * a + b for a, b in zip(each.losses, losses, strict=True)]
            each.trusted = self._hedge(each.losses)

    def _hedge(self, losses: list[float]) -> tuple[float, ...]:
        best = min(losses)
        raw = [exp(-self._settings.learning_rate * (loss - best)) for loss in losses]
        total = sum(raw)
        return tuple(weight / total for weight in raw)

    def _learn_line(self, line: _Line, forecast: float, actual: float) -> None:
        line.weight = min(line.weight + 1.0, self._settings.max_weight)
        rate = 1.0 / line.weight
        dx, dy = forecast - line.mean_x, actual - line.mean_y
        line.mean_x += rate * dx
        line.mean_y += rate * dy
        line.var += rate * (dx * (forecast - line.mean_x) - line.var)
        line.cov += rate * (dx * (actual - line.mean_y) - line.cov)

    def _learn_odds(self, line: _Line, static: vec[float], where: i64) -> None:
        """How much more frequent each bin is than forecast, both smoothed by the average forecast."""
        keep = 1.0 - 1.0 / self._settings.max_weight
        smooth = self._settings.odds_shrinkage / line.weight
        counts, forecasts, odds = line.counts, line.forecasts, line.odds
        _scale(counts, 0, keep)
        _add_answer(counts, 0, where)
        _scale(forecasts, 0, keep)
        _add(forecasts, 1.0, static, 0)
        for index in range(i64(NUM_BINS)):
            likely = smooth * forecasts[index] + 1e-3
            odds[index] = (counts[index] + likely) / (forecasts[index] + likely)

    def _refresh(self, line: _Line) -> None:
        """The line's shrunk slope, intercept and stretch, once per answer rather than once per forecast."""
        settings = self._settings
        shrink = settings.slope_shrinkage * _SLOPE_VARIANCE
        slope = min(max((line.cov * line.weight + shrink) / (line.var * line.weight + shrink), 0.0), _MAX_SLOPE)
        trust = self._share(line.weight)
        line.slope = 1.0 + trust * (slope - 1.0)
        line.intercept = trust * (line.mean_y - slope * line.mean_x)
        known = line.weight / (line.weight + 10.0)
        stretch = sqrt(1.0 + known * (line.spread - 1.0))
        line.stretch = min(max(stretch, settings.min_stretch), settings.max_stretch)

    def _learn_row(self, row: int, remaining: float) -> float:
        """Learn what coarser keys left unexplained; returns what this key, as it was, leaves to the finer ones."""
        explained = self._offsets[row]
        weight = self._weights[row]
        self._residuals[row] += (remaining - self._residuals[row]) / weight
        self._offsets[row] = self._residuals[row] * self._share(weight)
        return remaining - explained

    def _count(self, row: int, where: i64) -> None:
        """One more answer in bin `where` of a row; one that is full forgets as much as that."""
        limit = self._settings.max_weight
        start = _start_of(row)
        if self._weights[row] < limit:
            self._weights[row] += 1.0
        else:
            _scale(self._counts, start, (limit - 1.0) / limit)
        _add_answer(self._counts, start, where)

    def _row(self, key: int) -> int:
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
            return row
        row = self._new_row()
        self._rows[key] = row
        return row

    def _new_row(self) -> int:
        if len(self._rows) >= self._settings.max_keys:
            _, row = self._rows.popitem(last=False)
            self._weights[row] = self._residuals[row] = self._offsets[row] = 0.0
            _scale(self._counts, _start_of(row), 0.0)
            return row
        row = len(self._weights)
        if row * NUM_BINS == len(self._counts):
            self._counts = extend(self._counts, vec[float]([0.0] * (row * NUM_BINS)))
        self._weights.append(0.0)
        self._residuals.append(0.0)
        self._offsets.append(0.0)
        return row

    def _line(self, key: int) -> _Line:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            line.losses = list(self._overall.losses)
            line.trusted = self._overall.trusted
            if len(self._lines) > self._settings.max_keys:
                self._lines.popitem(last=False)
        else:
            self._lines.move_to_end(key)
        return line


_FIRST_ROWS: Final = 1024
_NEGLIGIBLE: Final = 0.01
"""Weight of an expert below which it is left out of a forecast. It goes on being judged, and may come back."""
_MAX_SLOPE: Final = 3.0
"""A tenant whose answers differ that much more than forecast is believed; beyond it is noise."""
_SLOPE_VARIANCE: Final = 0.3
"""Variance of ln(tokens) forecasts against which a tenant's tilt is shrunk to 1."""


def _start_of(row: int) -> i64:
    return i64(row) * i64(NUM_BINS)


def _add(total: vec[float], weight: float, values: vec[float], start: i64) -> None:
    """Add to `total` the row of `values` at `start`, times `weight`."""
    for index in range(i64(NUM_BINS)):
        total[index] += weight * values[start + index]


def _scale(values: vec[float], start: i64, factor: float) -> None:
    """Multiply the row of `values` at `start`."""
    for index in range(start, start + i64(NUM_BINS)):
        values[index] *= factor


def _add_answer(counts: vec[float], start: i64, where: i64) -> None:
    """One answer in bin `where` of the row at `start`, a part in the neighbours: no length is exact to a bin."""
    counts[start + where] += 0.6
    counts[start + max(where - 1, 0)] += 0.2
    counts[start + min(where + 1, i64(NUM_BINS - 1))] += 0.2
