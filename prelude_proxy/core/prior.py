"""What this fleet's own traffic says about output lengths: learned online, bounded in memory, blended with the model.

Who sends a request tells more about the length of its answer than its text, and fifty answers of a workload tell more
than fifty thousand of another. Three experts are kept apart and weighed by how well each did lately for this tenant:

* *static*: the trained model as it is;
* *corrected*: the model moved, tilted and stretched by what it missed before - a line per tenant, then residual
  means of the finer keys (model, call site, prompt template, very prompt), each shrunk towards the coarser one;
* *history*: how long answers under these keys were, whatever the prompt, coarse to fine, starting from the static
  forecast.

The weights are those of Hedge (Freund and Schapire 1997) on exponentially forgotten log-loss, mixed with the weights
over all tenants so that a new tenant starts from what worked elsewhere. Every memory forgets at the rate of its own
traffic: it remembers about `max_weight` answers, so it follows drift. No clock, no randomness, no text: keys are
64-bit hashes, salted anew in each process.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np

from prelude_proxy.core.bins import LN_MIDDLES, NUM_BINS, Probabilities, bin_of, mean_ln, shifted

STATIC, CORRECTED, HISTORY = range(3)
EXPERTS = ("static", "corrected", "history")


@dataclass(frozen=True, slots=True)
class PriorSettings:
    """How fast the prior learns and forgets. Chosen on held-out sources; see the model card."""

    max_keys: int = 50_000
    max_weight: float = 200.0
    """Answers that a memory remembers."""
    shift_shrinkage: float = 4.0
    """Answers after which a key's residual mean counts half."""
    count_shrinkage: float = 6.0
    """Answers after which a key's own distribution counts half."""
    slope_shrinkage: float = 12.0
    learning_rate: float = 0.3
    """Of Hedge, per nat of log-loss."""
    forgetting: float = 0.98
    global_share: float = 0.2
    """Part of the weights over all tenants in a tenant's own."""
    min_spread: float = 0.35
    max_spread: float = 2.5


class _Memory:
    """What is remembered under one key."""

    __slots__ = ("counts", "residual", "weight")

    def __init__(self) -> None:
        self.weight = 0.0
        self.residual = 0.0
        """Mean of what coarser keys left unexplained."""
        self.counts = np.zeros(NUM_BINS)


class _Line:
    """Exponentially weighted regression of actual on forecast ln(tokens), and how well each expert did."""

    __slots__ = ("cov", "losses", "mean_x", "mean_y", "spread", "var", "weight")

    def __init__(self) -> None:
        self.weight = 0.0
        self.mean_x = 0.0
        self.mean_y = 0.0
        self.var = 0.0
        self.cov = 0.0
        self.spread = 1.0
        """Mean squared error of the corrected forecast over the variance it was made with."""
        self.losses = [0.0, 0.0, 0.0]


@dataclass(frozen=True, slots=True)
class Blend:
    """A forecast and what `OnlinePrior.learn` needs to learn from its outcome."""

    probabilities: Probabilities
    mean: float
    """Expected ln(tokens)."""
    experts: bytes
    """float32 probabilities of the three experts, one after the other."""
    static_mean: float
    static_sigma: float


class OnlinePrior:
    """Bounded, decaying memory of answer lengths by key. Keys are given coarse to fine; the first is the tenant's."""

    def __init__(self, settings: PriorSettings | None = None) -> None:
        self._settings = settings or PriorSettings()
        self._memories: OrderedDict[int, _Memory] = OrderedDict()
        self._lines: OrderedDict[int, _Line] = OrderedDict()
        self._overall = _Line()

    def __len__(self) -> int:
        return len(self._memories)

    def weights(self) -> dict[str, float]:
        """Weight of each expert over all tenants."""
        return dict(zip(EXPERTS, self._hedge(self._overall.losses), strict=True))

    def predict(self, keys: tuple[int, ...], static: Probabilities) -> Blend:
        """Blend the experts for a request under `keys` whose model forecast is `static`."""
        mean = mean_ln(static)
        sigma = sqrt(max(float(static @ (LN_MIDDLES - mean) ** 2), 0.01))
        line = self._lines.get(keys[0]) or self._overall
        memories = [self._memories.get(key) for key in keys]
        expected = self._corrected_mean(line, memories, mean)
        stretch = self._stretch(line)
        corrected = static if line.weight == 0.0 else shifted(static, mean, expected - mean, stretch)
        history = self._history(memories, static)
        weights = self._weights(line)
        stacked = np.array((static, corrected, history))
        blended = weights @ stacked
        point = weights[0] * mean + weights[1] * expected + weights[2] * mean_ln(history)
        return Blend(blended, point, stacked.astype(np.float32).tobytes(), mean, sigma)

    def learn(self, keys: tuple[int, ...], blend: Blend, tokens: float) -> None:
        """The answer to a request predicted as `blend` took `tokens`."""
        actual = log(max(tokens, 1.0))
        line = self._line(keys[0])
        self._learn_losses(line, blend, bin_of(tokens))
        remaining = actual - self._line_mean(line, blend.static_mean)
        self._learn_line(line, blend.static_mean, actual)
        self._learn_line(self._overall, blend.static_mean, actual)
        where = bin_of(tokens)
        for key in keys:
            memory = self._memory(key)
            self._count(memory, where)
            before = memory.residual
            memory.residual += (remaining - before) / memory.weight
            remaining -= before * self._share(memory.weight - 1.0)
        squared = min(remaining * remaining / (blend.static_sigma * blend.static_sigma), 16.0)
        for each in (line, self._overall):
            each.spread += (squared - each.spread) / (min(each.weight, 60.0) + 4.0)

    # --- experts ------------------------------------------------------------------------------------------------------

    def _line_mean(self, line: _Line, mean: float) -> float:
        """The tenant's line at the model's forecast, shrunk to the forecast itself."""
        if line.weight == 0.0:
            return mean
        shrink = self._settings.slope_shrinkage
        slope = (line.cov * line.weight + shrink * 0.3) / (line.var * line.weight + shrink * 0.3)
        slope = min(max(slope, 0.0), 1.5)
        fitted = line.mean_y + slope * (mean - line.mean_x)
        trust = line.weight / (line.weight + self._settings.shift_shrinkage)
        return mean + trust * (fitted - mean)

    def _corrected_mean(self, line: _Line, memories: list[_Memory | None], mean: float) -> float:
        expected = self._line_mean(line, mean)
        for memory in memories:
            if memory is not None:
                expected += memory.residual * self._share(memory.weight)
        return expected

    def _share(self, weight: float) -> float:
        return max(weight, 0.0) / (max(weight, 0.0) + self._settings.shift_shrinkage)

    def _stretch(self, line: _Line) -> float:
        settings = self._settings
        known = line.weight / (line.weight + 10.0)
        return min(max(sqrt(1.0 + known * (line.spread - 1.0)), settings.min_spread), settings.max_spread)

    def _history(self, memories: list[_Memory | None], static: Probabilities) -> Probabilities:
        shrink = self._settings.count_shrinkage
        expected = static
        for memory in memories:
            if memory is not None:
                expected = (memory.counts + shrink * expected) / (memory.weight + shrink)
        return expected

    def _weights(self, line: _Line) -> Probabilities:
        own, overall = self._hedge(line.losses), self._hedge(self._overall.losses)
        share = self._settings.global_share
        return np.array([(1.0 - share) * a + share * b for a, b in zip(own, overall, strict=True)])

    def _hedge(self, losses: list[float]) -> list[float]:
        best = min(losses)
        raw = [exp(-self._settings.learning_rate * (loss - best)) for loss in losses]
        total = sum(raw)
        return [weight / total for weight in raw]

    # --- learning -----------------------------------------------------------------------------------------------------

    def _learn_losses(self, line: _Line, blend: Blend, where: int) -> None:
        experts = np.frombuffer(blend.experts, dtype=np.float32).reshape(3, NUM_BINS)
        losses = [-log(max(float(value), 1e-3)) for value in experts[:, where]]
        for each in (line, self._overall):
            each.losses = [self._settings.forgetting * a + b for a, b in zip(each.losses, losses, strict=True)]

    def _learn_line(self, line: _Line, forecast: float, actual: float) -> None:
        line.weight = min(line.weight + 1.0, self._settings.max_weight)
        rate = 1.0 / line.weight
        dx, dy = forecast - line.mean_x, actual - line.mean_y
        line.mean_x += rate * dx
        line.mean_y += rate * dy
        line.var += rate * (dx * (forecast - line.mean_x) - line.var)
        line.cov += rate * (dx * (actual - line.mean_y) - line.cov)

    def _count(self, memory: _Memory, where: int) -> None:
        limit = self._settings.max_weight
        if memory.weight >= limit:
            memory.counts *= (limit - 1.0) / limit
            memory.weight = limit
        else:
            memory.weight += 1.0
        memory.counts[where] += 0.6
        memory.counts[max(where - 1, 0)] += 0.2
        memory.counts[min(where + 1, NUM_BINS - 1)] += 0.2

    def _memory(self, key: int) -> _Memory:
        memory = self._memories.get(key)
        if memory is None:
            memory = self._memories[key] = _Memory()
            if len(self._memories) > self._settings.max_keys:
                self._memories.popitem(last=False)
        else:
            self._memories.move_to_end(key)
        return memory

    def _line(self, key: int) -> _Line:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            line.losses = list(self._overall.losses)
            if len(self._lines) > self._settings.max_keys:
                self._lines.popitem(last=False)
        else:
            self._lines.move_to_end(key)
        return line
