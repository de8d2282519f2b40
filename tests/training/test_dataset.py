"""Readers of both row formats."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pytest
import zstandard

from prelude_proxy.core.domain import Endpoint
from prelude_proxy.training.dataset import cap_sources, read_rows

from .synthetic import requests, write

CORPUS = {
    "source": "s",
    "sub": "a",
    "group": 7,
    "model": "m",
    "endpoint": "chat",
    "out_tokens": 12,
    "messages": [{"role": "user", "content": "hi", "chars": 2}],
}


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_rows_are_read_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    """The suffix tells how."""
    data = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in requests(5))
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix](data)
    file = tmp_path / f"rows.jsonl{suffix}"
    file.write_bytes(packed)
    rows = list(read_rows(file))
    assert len(rows) == 5
    assert rows[0].facts().tenant == rows[0].source


def test_a_corpus_row_becomes_a_request(tmp_path: Path) -> None:
    """With its path, tenant and tools in the wire's shape."""
    tools = orjson.dumps([{"name": "f", "parameters": {}}]).decode()
    rows = [
        CORPUS | {"tools": tools},
        CORPUS | {"endpoint": "completions", "params": {"reasoning_effort": "high"}},
    ]
    chat, completion = read_rows(write(tmp_path / "rows.jsonl", rows))
    assert chat.facts().has_tools
    assert chat.facts().tenant == "s/a"
    assert completion.facts().endpoint is Endpoint.COMPLETIONS
    assert completion.facts().reasoning is True


def test_rows_that_mislead_are_left_out(tmp_path: Path) -> None:
    """Reasoning that was not counted, and answers by people."""
    rows = [CORPUS | {"hidden_reasoning": True}, CORPUS | {"label": "reference"}, CORPUS]
    assert len(list(read_rows(write(tmp_path / "rows.jsonl", rows)))) == 1


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    """File, line and reason."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(orjson.dumps(CORPUS) + b"\n{}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2"):
        list(read_rows(file))


def test_large_sources_keep_every_prompt_but_fewer_answers_each(tmp_path: Path) -> None:
    """A benchmark of one prompt to many models does not outweigh the rest."""
    rows = [CORPUS | {"group": group, "model": f"m{model}"} for group in range(10) for model in range(30)]
    rows += [CORPUS | {"source": "small", "group": group} for group in range(5)]
    kept = cap_sources(list(read_rows(write(tmp_path / "rows.jsonl", rows))), max_rows=60)
    assert sum(row.source == "s" for row in kept) == 60
    assert len({row.group for row in kept if row.source == "s"}) == 10
    assert sum(row.source == "small" for row in kept) == 5
