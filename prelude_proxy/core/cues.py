"""What a prompt says outright about the length of its answer, for kinds of prompts the training data hardly has.

The public data with a licence to ship is exam questions, puzzles and code: it holds almost no "write a 3,000 word
essay" and no "translate 'harbour' to French". A model trained on it forecasts both alike. So a few plain readings of
plain instructions stand beside the trees: an asked-for number of words, sentences or paragraphs; several demands for a
large work at once; a demand for a single word. They are set by hand, not fitted, and narrow: the prompt is short and,
for a large work, opens with the order to make it. The online prior corrects them like any other forecast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import exp, log
from typing import Final

from librt.vecs import vec
from mypy_extensions import i64

from prelude_proxy.core.bins import LN_EDGES, NUM_BINS

_LARGE: Final = frozenset(
    b"detailed detail depth comprehensive thorough thoroughly essay complete full entire every each sections design "
    b"report tests implementation analysis alternatives conclusion chapter tutorial guide architecture elaborate long "
    b"lemma lemmas economics history component components".split()
)
_MAKES: Final = frozenset(
    b"write create compose generate draft design develop build make implement prove explain describe discuss compare "
    b"analyze analyse produce give plan".split()
)
_SMALL: Final = frozenset(
    b"yes no synonym antonym translate spelled spelling positive negative sentiment capital true false opposite "
    b"abbreviation plural".split()
)
_MAX_ORDER_WORDS: Final = 80
_MAX_SMALL_WORDS: Final = 16
# unit → how many may be asked for, and what one is in tokens (English, common tokenizers)
_UNITS: Final = {1: (100_000, 1.35), 2: (12, 28.0), 3: (10, 95.0)}
_MOST_TOKENS: Final = 2000.0
"""Models asked for more rarely write more in one answer."""


@dataclass(frozen=True, slots=True)
class Cue:
    """A plain reading: about `tokens`, give or take, and how far it is believed against the model."""

    tokens: float
    weight: float

    def applied_to(self, probabilities: vec[float]) -> vec[float]:
        """The model's forecast mixed with a log-normal one about `tokens`."""
        bell = _bell(self.tokens)
        mixed = probabilities[:NUM_BINS]
        for index in range(i64(NUM_BINS)):
            mixed[index] += self.weight * (bell[index] - mixed[index])
        return mixed


def read_cue(
    words: list[bytes], distinct: set[bytes], *, asked: tuple[float, float], is_known_model: bool
) -> Cue | None:
    """The cue in a prompt, if it gives one.

    Args:
        words: of the last message, lower case, in order.
        distinct: the same as a set.
        asked: a number the prompt asks for, and the unit: 1 words, 2 sentences, 3 paragraphs, 0 none.
        is_known_model: whether the training data has answers of this very model.
    """
    if not words or len(words) > _MAX_ORDER_WORDS:
        return None
    num_large = len(distinct & _LARGE)
    is_order = num_large >= 3 and words[0] in _MAKES
    count, unit = asked
    most, tokens_each = _UNITS.get(int(unit), (0, 0.0))
    if 0 < count <= most and not (is_order and unit != 1):
        return Cue(_rounded(min(count * tokens_each, _MOST_TOKENS)), 0.75 if unit == 1 else 0.6)
    if is_order:
        return Cue(900.0, 0.75)
    if not num_large and not is_known_model and len(words) <= _MAX_SMALL_WORDS and distinct & _SMALL:
        return Cue(20.0, 0.6)
    return None


def _rounded(tokens: float) -> float:
    """To two digits, so that few different bells are made."""
    return float(f"{max(tokens, 4.0):.1e}")


@lru_cache(maxsize=256)
def _bell(tokens: float) -> vec[float]:
    """A log-normal distribution over the bins, σ = 0.6 (two thirds within a factor of 1.8)."""
    # the logistic for the normal CDF, within 0.01
    below = [1.0 / (1.0 + exp(-1.702 * (edge - log(tokens)) / 0.6)) for edge in LN_EDGES[: NUM_BINS - 1]]
    return vec[float]([high - low for low, high in pairwise([0.0, *below, 1.0])])
