"""Prompts of the built-in mix, and text of a given size for traces that carry lengths but no words.

A prompt alone must tell how much work it is, as in real traffic: the true length goes to the engine only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

FAST = (
    "What is the capital of {place}?",
    "Translate '{thing}' to French.",
    "Is '{thing}' spelled correctly? Answer yes or no.",
    "Give one synonym for {thing}.",
    "Classify the sentiment as positive or negative: I like my {thing}.",
    "Extract the colour from this sentence and answer with one word: the {thing} was painted green.",
    "In which year was the {thing} invented? Answer with the year only.",
)
STANDARD = (
    "Explain in two paragraphs what a {thing} is and where it is used.",
    "Write a short email to a colleague about a {thing}.",
    "Summarise what you know about a {thing} in about 150 words.",
    "Give a recipe-like list of steps for repairing a {thing}, with one sentence for each step.",
)
DEEP = (
    (
        "Prove step by step, with every intermediate lemma, that the {thing} problem is NP-hard, then write a complete "
        "Python implementation with tests and a detailed analysis."
    ),
    (
        "Write a detailed 3000 word essay about the history, economics and future of the {thing}, with sections, "
        "examples and a conclusion."
    ),
    (
        "Design a distributed {thing} system. Think step by step, compare at least five alternatives in depth, and "
        "write the full code for each component."
    ),
)
TEMPLATES: Mapping[str, Sequence[str]] = {"fast": FAST, "standard": STANDARD, "deep": DEEP}
OUTPUT_TOKENS: Mapping[str, tuple[int, int]] = {"fast": (4, 48), "standard": (100, 400), "deep": (520, 900)}
"""Range a built-in request's true length is drawn from, uniformly."""

THINGS = (
    "lantern", "database", "knapsack", "river", "violin", "compiler", "harbour", "telescope", "bread", "library",
    "windmill", "bicycle", "calendar", "compass", "engine", "garden",
)  # fmt: skip
PLACES = ("France", "Japan", "Kenya", "Peru", "Norway", "Egypt", "Canada", "Vietnam", "Portugal", "Mongolia")
_FILLER = (
    "the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not",
    "he", "his", "but", "at", "are", "this", "have", "from", "or", "had", "an", "they", "which", "one", "you",
    "were", "all", "her", "she", "there", "would", "their", "we", "him", "been", "has", "when", "who", "will", "no",
    "more", "if", "out", "so", "what", "up", "said", "about",
)  # fmt: skip
_CHARS_PER_TOKEN = 4
BLOCK_TOKENS = 512  # the unit of the prefix block ids in Mooncake's traces


def question(klass: str, rng: random.Random) -> str:
    """A built-in prompt whose wording fits class `klass`."""
    return rng.choice(TEMPLATES[klass]).format(thing=rng.choice(THINGS), place=rng.choice(PLACES))


def sized_prompt(klass: str, prompt_tokens: int, prefix_blocks: Sequence[int], rng: random.Random) -> str:
    """About `prompt_tokens` tokens: filler first, then a question of `klass`.

    Equal block ids give equal text, so requests that shared a prefix in the trace share one here.
    """
    ask = question(klass, rng)
    missing = prompt_tokens - len(ask) // _CHARS_PER_TOKEN
    if missing <= 8:
        return ask
    blocks = list(prefix_blocks[: missing // BLOCK_TOKENS])
    parts = [filler(BLOCK_TOKENS, random.Random(block)) for block in blocks]
    parts.append(filler(missing - BLOCK_TOKENS * len(blocks), rng))
    return f"Context: {' '.join(parts)}\n\n{ask}"


def filler(num_tokens: int, rng: random.Random) -> str:
    """Common words worth about `num_tokens` tokens (4 characters each)."""
    words: list[str] = []
    size = 0
    while size < num_tokens * _CHARS_PER_TOKEN:
        words.append(rng.choice(_FILLER))
        size += len(words[-1]) + 1
    return " ".join(words)
