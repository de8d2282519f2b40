"""The model's file: one zip with a manifest, the forest, the lexicon and the habits of known model names.

Written by training, read by the proxy; the manifest pins feature names, version and bins, and a model that was trained
for others is refused rather than fed the wrong numbers.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from prelude_proxy.core.bins import EDGES
from prelude_proxy.core.features import FEATURES, FEATURES_VERSION, FeatureExtractor
from prelude_proxy.core.length import LengthModel, ModelInfo
from prelude_proxy.core.lexicon import Lexicon
from prelude_proxy.core.modelname import HABIT_FEATURES, ModelHabit
from prelude_proxy.core.trees import FlatForest
from prelude_proxy.errors import ConfigError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class ModelParts:
    """Everything in a model file, as training makes it and `explain` needs it."""

    manifest: Mapping[str, Any]
    feature: NDArray[Any]
    """(trees, 2^depth - 1): feature compared at each node of the padded trees."""
    threshold: NDArray[np.float32]
    cover: NDArray[np.float32]
    """Training weight that reached each leaf, (trees, 2^depth); SHAP needs it."""
    leaves: NDArray[np.float32]
    base: NDArray[np.float32]
    words: Mapping[bytes, float]
    """Weights of the lexicon's terms."""
    habits: Mapping[str, ModelHabit]

    def build(self, digest: str = "unsaved") -> LengthModel:
        """The model ready to predict."""
        manifest = self.manifest
        return LengthModel(
            info=ModelInfo(
                name=str(manifest.get("name", "model")),
                features_version=FEATURES_VERSION,
                trained_rows=int(manifest.get("trained_rows", 0)),
                sources=tuple(manifest.get("sources", ())),
                digest=digest,
            ),
            extractor=FeatureExtractor(Lexicon.of(self.words), self.habits),
            forest=FlatForest.build(self.feature, self.threshold, self.leaves, self.base),
        )


def default_model_path() -> Path:
    """The model shipped with the package."""
    return Path(str(resources.files("prelude_proxy"))) / "models" / "default.model"


def load_model(path: Path | None = None) -> LengthModel:
    """The model at `path`, or the shipped one.

    Raises:
        ConfigError: there is no such file, it is damaged, or it was trained for other features or bins.
    """
    path = path or default_model_path()
    parts = read_parts(path)
    return parts.build(blake2b(path.read_bytes(), digest_size=6).hexdigest())


def read_parts(path: Path) -> ModelParts:
    """The contents of a model file, checked against this version of the features.

    Raises:
        ConfigError: as `load_model`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = orjson.loads(archive.read("manifest.json"))
            _check_manifest(path, manifest)
            with np.load(io.BytesIO(archive.read("forest.npz")), allow_pickle=False) as arrays:
                forest = {name: arrays[name] for name in ("feature", "threshold", "cover", "leaves", "base")}
            words = _parse_lexicon(archive.read("lexicon.tsv"))
            habits = _parse_habits(archive.read("habits.tsv"))
    except FileNotFoundError:
        raise ConfigError(f"no model at {path}; train one with `prelude-proxy train`") from None
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a model file, or damaged: {error}") from None
    return ModelParts(manifest=manifest, words=words, habits=habits, **forest)


def write_parts(path: Path, parts: ModelParts) -> None:
    """Write the file beside `path` and move it there, so that a reader sees the old model or the new one."""
    arrays = io.BytesIO()
    np.savez(
        arrays,
        feature=parts.feature.astype(np.uint8 if len(FEATURES) < 256 else np.uint16),
        threshold=parts.threshold,
        cover=parts.cover,
        leaves=parts.leaves,
        base=parts.base,
    )
    manifest = dict(parts.manifest) | {
        "format": FORMAT,
        "features_version": FEATURES_VERSION,
        "features": FEATURES,
        "edges": EDGES,
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("manifest.json", orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        archive.writestr("forest.npz", arrays.getvalue())
        archive.writestr("lexicon.tsv", _format_lexicon(parts.words))
        archive.writestr("habits.tsv", _format_habits(parts.habits))
    beside.replace(path)


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    if manifest.get("format") != FORMAT:
        raise ConfigError(f"{path}: model format {manifest.get('format')}, this version reads {FORMAT}; train it anew")
    if manifest.get("features_version") != FEATURES_VERSION:
        raise ConfigError(
            f"{path}: trained for features version {manifest.get('features_version')}, this is "
            f"{FEATURES_VERSION}; train it anew"
        )
    if tuple(manifest.get("features", ())) != FEATURES:
        different = set(manifest.get("features", ())) ^ set(FEATURES)
        names = ", ".join(sorted(map(str, different))[:5]) or "their order"
        raise ConfigError(f"{path}: trained on other features ({names} differ); train it anew")
    if tuple(manifest.get("edges", ())) != EDGES:
        raise ConfigError(f"{path}: trained for other bins of output tokens; train it anew")


def _format_lexicon(words: Mapping[bytes, float]) -> bytes:
    return b"\n".join(b"%s\t%.5g" % item for item in sorted(words.items()))


def _parse_lexicon(data: bytes) -> dict[bytes, float]:
    words = {}
    for line in data.split(b"\n"):
        word, tab, weight = line.partition(b"\t")
        if tab:
            words[word] = float(weight)
    return words


def _format_habits(habits: Mapping[str, ModelHabit]) -> str:
    return "\n".join(
        "\t".join((name, *(f"{value:.4f}" for value in habit.values()))) for name, habit in sorted(habits.items())
    )


def _parse_habits(data: bytes) -> dict[str, ModelHabit]:
    habits = {}
    for line in data.decode().splitlines():
        name, *values = line.rsplit("\t", len(HABIT_FEATURES))
        habits[name] = ModelHabit(*map(float, values))
    return habits
