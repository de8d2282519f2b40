"""How long an answer gets when the request does not say: drawn from the prompt's kind, the same for the same prompt."""

from __future__ import annotations

import hashlib
import math
import random
import re

_LONG = re.compile(
    r"\b(prove|proof|essay|design|step by step|in (?:full )?detail|detailed|comprehensive|implement(?:ation)?|"
    r"write (?:a|the|full|complete)\b.{0,40}\b(?:code|program|story|report|chapter)|compare .{0,60}alternatives|"
    r"\d{4} words?)\b",
    re.IGNORECASE | re.DOTALL,
)
_SHORT = re.compile(
    r"\b(yes or no|one word|true or false|translate|classify|synonym|spelled|capital of|how many|which year|extract|"
    r"sentiment|what is the)\b",
    re.IGNORECASE,
)
# median and spread (sigma of ln) of a log-normal: the usual shape of answer lengths
_SHAPES = {"short": (18.0, 0.6), "medium": (180.0, 0.6), "long": (900.0, 0.4)}


def prompt_kind(text: str) -> str:
    """`short`, `medium` or `long`: what a reader would expect of the answer. Long cues win over short ones."""
    if _LONG.search(text):
        return "long"
    if _SHORT.search(text) or len(text) < 40:
        return "short"
    return "medium"


def draw_output_tokens(text: str, seed: int) -> int:
    """Output tokens for the prompt `text`, at least 1; depends on text and seed alone."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8, key=str(seed).encode()).digest()
    median, sigma = _SHAPES[prompt_kind(text)]
    normal = random.Random(int.from_bytes(digest)).gauss(0.0, sigma)
    return max(1, round(median * math.exp(normal)))
