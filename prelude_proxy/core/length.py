"""The trained model as a pure function: a request in, the distribution of its answer's length out."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from librt.vecs import vec

from prelude_proxy.core.domain import RequestFacts
from prelude_proxy.core.features import FEATURES, Extract, FeatureExtractor
from prelude_proxy.core.trees import FlatForest, softmax

_VECTOR: Final = Struct(f"{len(FEATURES)}f")


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

    def predict(self, facts: RequestFacts) -> tuple[Extract, vec[float]]:
        """Features, and the probability of each bin, of one choice."""
        extract = self.extractor.extract(facts)
        probabilities = self.of_values(extract.values)
        return extract, probabilities if extract.cue is None else extract.cue.applied_to(probabilities)

    def of_values(self, values: list[float]) -> vec[float]:
        """Probability of each bin for a feature vector."""
        return softmax(self.forest.margins(vec[float](values)))


def packed(values: list[float]) -> bytes:
    """A feature vector in float32, as the forest compares it and the journal keeps it."""
    return _VECTOR.pack(*values)
