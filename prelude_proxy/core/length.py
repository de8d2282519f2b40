"""The trained model as a pure function: a request in, the distribution of its answer's length out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prelude_proxy.core.bins import Probabilities
from prelude_proxy.core.domain import RequestFacts
from prelude_proxy.core.features import Extract, FeatureExtractor
from prelude_proxy.core.trees import FlatForest, softmax


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model says of itself, for `/status`, logs and reports."""

    name: str
    features_version: int
    trained_rows: int
    sources: tuple[str, ...]
    digest: str
    """Of the file, so that two can be told apart."""


@dataclass(frozen=True, slots=True)
class LengthModel:
    """Features, forest and calibration, and what the file said about them."""

    info: ModelInfo
    extractor: FeatureExtractor
    forest: FlatForest
    temperature: float = 1.0
    """Margins are divided by it before the softmax; fitted on held-out rows."""

    def predict(self, facts: RequestFacts) -> tuple[Extract, Probabilities]:
        """Features of the request and the probability of each bin of output tokens of one choice."""
        extract = self.extractor.extract(facts)
        return extract, self.of_values(extract.values)

    def of_values(self, values: list[float]) -> Probabilities:
        """Probability of each bin for a feature vector."""
        return softmax(self.forest.margins(np.array(values, dtype=np.float32)) / np.float32(self.temperature))
