from __future__ import annotations

import gzip
import json
import random
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import pytest

from prelude_proxy.bench import traces
from prelude_proxy.bench.workload import Limits

WIDE = Limits(max_output_tokens=10**6, max_prompt_tokens=10**6)


def write(path: Path, text: str) -> Path:
    """A file, compressed if its name says so."""
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_plain_csv(tmp_path: Path) -> None:
    """Times count from the first arrival, rows come in order, lengths decide the class."""
    path = write(tmp_path / "t.csv.gz", "t_s,input_tokens,output_tokens\n5.0,10,600\n3.5,7,20\n")
    plan = traces.load_trace(path, WIDE)
    assert [(i.at_s, i.prompt_tokens, i.output_tokens, i.klass) for i in plan] == [
        (0.0, 7, 20, "fast"),
        (1.5, 10, 600, "deep"),
    ]


def test_azure_columns_and_dates(tmp_path: Path) -> None:
    """The published Azure file is read as it is, dates with seven decimals too."""
    path = write(
        tmp_path / "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.4799600,3180,8\n",
    )
    assert [item.at_s for item in traces.load_trace(path, WIDE)] == pytest.approx([0.0, 0.5])


def test_mooncake_json_lines(tmp_path: Path) -> None:
    """Milliseconds and block ids of Mooncake's own format are understood."""
    rows = [{"timestamp": ms, "input_length": 9, "output_length": 5, "hash_ids": [0, ms]} for ms in (1000, 3000)]
    path = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    plan = traces.load_trace(path, WIDE)
    assert [item.at_s for item in plan] == [0.0, 2.0]
    assert plan[1].prefix_blocks == (0, 3000)


def test_block_ids_in_csv(tmp_path: Path) -> None:
    """Prefix blocks are a list separated by spaces in a CSV cell."""
    path = write(tmp_path / "b.csv", "t_s,input_tokens,output_tokens,prefix_block_ids_512\n0,1500,3,4 5 6\n")
    assert traces.load_trace(path, WIDE)[0].prefix_blocks == (4, 5, 6)


def test_lengths_are_cut_to_the_limits(tmp_path: Path) -> None:
    """The class stays that of the true length."""
    path = write(tmp_path / "t.csv", "t_s,input_tokens,output_tokens\n0,9000,5000\n")
    (item,) = traces.load_trace(path, Limits())
    assert (item.prompt_tokens, item.output_tokens, item.klass) == (1500, 900, "deep")


def test_a_trace_without_arrivals_needs_a_rate(tmp_path: Path) -> None:
    """Lengths alone become a Poisson stream of the rate given, or an error that says so."""
    path = write(tmp_path / "v.csv", "idx,input_tokens,output_tokens\n" + "0,5,5\n" * 200)
    with pytest.raises(ValueError, match="give a rate"):
        traces.load_trace(path, WIDE)
    plan = traces.load_trace(path, WIDE, rate=100.0)
    assert 1.4 < plan[-1].at_s < 2.8


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "when,input_tokens\n1,2\n", "no column for output tokens; it has when, input_tokens"),
        ("t.csv", "t_s,input_tokens,output_tokens\n0,1,2\n0,x,2\n", "row 2: could not convert"),
        ("t.jsonl", "{}\n[1]\n", "t.jsonl:2: not a JSON object"),
        ("t.jsonl", "{]\n", "t.jsonl:1: not JSON"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, name: str, text: str, message: str) -> None:
    """The error names the file, the place and what is wrong."""
    with pytest.raises(ValueError, match=message):
        traces.load_trace(write(tmp_path / name, text), WIDE)


def test_zst_is_read(tmp_path: Path) -> None:
    """A zstandard file is read like any other."""
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b'{"a": 1}\n\n{"a": 2}\n'))
    assert [row["a"] for row in traces.read_json_lines(path)] == [1, 2]


def servegen_row(client: int, n: float, *, win: int = 0, cat: str = "language/x") -> dict[str, object]:
    """A client's window whose outputs are between 10 and 90 tokens."""
    quantiles = [10, 20, 30, 40, 50, 60, 70, 80, 90]
    return {"cat": cat, "client": client, "win": win, "n": n, "cv": 2.0, "out_q": quantiles, "in_q": quantiles}


def test_servegen_clients_become_tenants_of_the_busiest_window(tmp_path: Path) -> None:
    """Each client sends at its own rate in the busiest window of the category."""
    rows = [servegen_row(1, 21_600), servegen_row(2, 3 * 21_600), servegen_row(3, 21_600, win=21_600)]
    path = write(tmp_path / "clients.jsonl.gz", "\n".join(map(json.dumps, rows)))
    plan = traces.load_trace(path, WIDE, seconds=2000.0)
    counts = {name: sum(item.tenant == name for item in plan) for name in {item.tenant for item in plan}}
    assert set(counts) == {"client-1", "client-2"}
    assert 2.4 < counts["client-2"] / counts["client-1"] < 3.7
    assert all(10 <= item.output_tokens <= 90 for item in plan)
    assert plan[0].at_s == 0.0


def test_unknown_servegen_category() -> None:
    """The known categories are named."""
    with pytest.raises(ValueError, match="there is language/x"):
        traces.servegen_plan([servegen_row(1, 5)], WIDE, seed=1, seconds=1.0, category="audio")


def test_renewal_gaps_have_their_mean_and_variation() -> None:
    """Gamma gaps: the rate and the coefficient of variation come out, and the start is no burst."""
    times = list(traces.renewal_arrivals(10.0, 2.0, 4000.0, random.Random(3)))
    gaps = [b - a for a, b in pairwise(times)]
    assert mean(gaps) == pytest.approx(0.1, rel=0.05)
    assert stdev(gaps) / mean(gaps) == pytest.approx(2.0, rel=0.1)
    starts = [next(traces.renewal_arrivals(10.0, 2.0, 1e9, random.Random(seed))) for seed in range(4000)]
    assert mean(starts) == pytest.approx(0.1 * (1 + 2.0**2) / 2, rel=0.15)  # residual life of a renewal process


def test_quantile_draws_follow_the_quantiles() -> None:
    """Half of the draws lie below the median given."""
    rng = random.Random(5)
    draws = [traces.quantile_draw([1, 2, 4, 8, 100, 200, 400, 800, 1600], rng) for _ in range(4000)]
    assert sum(draw <= 100 for draw in draws) / 4000 == pytest.approx(0.5, abs=0.03)
    assert 1 <= min(draws) <= max(draws) <= 1600
