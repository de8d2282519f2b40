"""A made-up workload: three kinds of prompts whose answers differ in length, by two models of which one is wordy."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import orjson

_KINDS = (
    ("Answer with yes or no: is the number {n} prime?", 3),
    ("Summarise in two sentences what {topic} means for a small town.", 90),
    ("Write a detailed essay on {topic}, think step by step and give {n} examples.", 900),
)
_TOPICS = [
    "rivers",
    "trains",
    "bread",
    "winter",
    "music",
    "harbours",
    "bees",
    "clocks",
    "letters",
    "glass",
    "stars",
    "bridges",
]


def requests(count: int, seed: int = 0, sources: int = 2) -> list[dict[str, Any]]:
    """Request rows, in order, from `sources` sources."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        text, tokens = rng.choice(_KINDS)
        wordy = rng.random() < 0.5
        prompt = text.format(n=rng.randrange(2, 99), topic=" and ".join(rng.sample(_TOPICS, 2)))
        source = f"source{rng.randrange(sources)}"
        rows.append(
            {
                "request": {
                    "model": "wordy-7b" if wordy else "terse-7b",
                    "messages": [{"role": "user", "content": prompt}],
                },
                "path": "/v1/chat/completions",
                "headers": {"x-tenant-id": source},
                "output_tokens": max(1, int(tokens * rng.lognormvariate(0, 0.3) * (1.5 if wordy else 0.7))),
                "ts": index * 0.5,
                "source": source,
                "group": prompt,
            }
        )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
    return path
