"""The trained model as a pure function: a request in, the distribution of its answer's length out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prelude_proxy.core.bins import Probabilities
from prelude_proxy.core.domain import RequestFacts
from prelude_proxy.core.features import Extract, FeatureExtractor
from prelude_proxy.core.trees import FlatForest, Vector, softmax


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
    """Features and forest, and what the file said about them."""

    info: ModelInfo
    extractor: FeatureExtractor
    forest: FlatForest

    def predict(self, facts: RequestFacts) -> tuple[Extract, Vector, Probabilities]:
        """Features, as extracted and as the forest's vector, and the probability of each bin, of one choice."""
        extract = self.extractor.extract(facts)
        values = np.array(extract.values, dtype=np.float32)
        return extract, values, self.of_values(values)

    def of_values(self, values: Vector) -> Probabilities:
        """Probability of each bin for a feature vector."""
        return softmax(self.forest.margins(values))
