from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from prelude_proxy.bench.wire import Wire
from prelude_proxy.commands.bench import bench, make_targets, parse_mix, parse_watch, parse_weights

URL = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("0.75,0,0.25", {"fast": 0.75, "standard": 0.0, "deep": 0.25}),
        ("oneshot=1,deep=3", {"oneshot": 1.0, "deep": 3.0}),
    ],
)
def test_a_mix_is_read(text: str, weights: dict[str, float]) -> None:
    """Three shares, or shares by name."""
    assert parse_mix(text) == weights


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "0,0,0", "-1,0,2", "quick=1"])
def test_a_wrong_mix_is_refused(text: str) -> None:
    """Not three numbers, nothing above zero, below zero, or an unknown class."""
    with pytest.raises(ValueError, match=r"mix|convert|shares|class"):
        parse_mix(text)


def test_tenants_by_number_or_weight() -> None:
    """A number makes equal tenants; names take weights."""
    assert parse_weights("2") == {"tenant-0": 1.0, "tenant-1": 1.0}
    assert parse_weights("a=1,b=8") == {"a": 1.0, "b": 8.0}


def test_labels_go_to_their_targets() -> None:
    """A named label is for one target, an unnamed one for all."""
    targets = make_targets([f"a={URL}", f"b={URL}"], ["prelude", "b=haproxy"], Wire("m"))
    assert [target.wire.label for target in targets] == ["prelude", "haproxy"]
    assert {target.wire.model for target in targets} == {"m"}


@pytest.mark.parametrize(
    ("targets", "labels", "message"),
    [
        ([f"a={URL}", f"a={URL}"], [], "two targets are named 'a'"),
        ([f"a={URL}"], ["c=prio"], "names 'c', but the targets are a"),
        ([f"a={URL}"], ["gold"], "unknown label 'gold'"),
    ],
)
def test_wrong_targets_are_refused(targets: list[str], labels: list[str], message: str) -> None:
    """The message names what is wrong and what there is."""
    with pytest.raises(ValueError, match=message):
        make_targets(targets, labels, Wire())


def test_watched_pages_belong_to_a_target_or_to_all() -> None:
    """Without a target a page is read while any of them is under load."""
    targets = make_targets([f"a={URL}", f"b={URL}"], [], Wire())
    assert parse_watch(["e=http://e/metrics", "b/p=http://p/status"], targets) == {
        "a": {"e": "http://e/metrics"},
        "b": {"e": "http://e/metrics", "p": "http://p/status"},
    }
    with pytest.raises(ValueError, match="names 'c'"):
        parse_watch(["c/p=http://p/status"], targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "localhost:8000"], "is not a URL such as"),
        (["--target", URL, "--mix", "1,2"], "a mix is three shares"),
        (["--target", URL, "--trace", "{tmp}/t.csv", "--data", "{tmp}/t.csv"], "cannot be combined"),
        (["--target", URL, "--trace", "{tmp}/t.csv"], "no column for output tokens"),
        (["--target", URL, "--seconds", "0.001", "--rate", "1"], "the plan is empty"),
        (["--target", URL, "--api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        ([], "Missing option '--target'"),
    ],
)
def test_wrong_use_ends_with_two(options: list[str], message: str, tmp_path: Path) -> None:
    """A mistake on the command line costs no run, says what it is, and exits with 2."""
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    result = CliRunner().invoke(bench, [option.replace("{tmp}", str(tmp_path)) for option in options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_target_that_is_down_ends_with_one() -> None:
    """The message names the URL; there is no traceback."""
    result = CliRunner().invoke(bench, ["--target", URL, "--seconds", "1"])
    assert result.exit_code == 1
    assert f"Error: {URL} does not answer" in result.output


def test_help_shows_an_example() -> None:
    """The help can be pasted."""
    assert "prelude-proxy bench --target direct=" in CliRunner().invoke(bench, ["--help"]).output


async def test_a_whole_run(engine_url: str, tmp_path: Path) -> None:
    """Against a live server it prints JSON, and writes the report and its plot."""
    code = "from prelude_proxy.commands.bench import bench; bench()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "--target", f"a={engine_url}", "--target", f"b={engine_url}", "--seconds", "0.3",
        "--rate", "60", "--mix", "1,0,0", "--rounds", "2", "--tenants", "2", "--warmup", "3", "--json",
        "--watch", f"engine={engine_url}/metrics", "--out", str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    report = json.loads(output)
    assert set(report["targets"]) == {"a", "b"}
    assert report["targets"]["a"]["rounds"] == 2
    assert report["targets"]["a"]["ok"] == report["targets"]["a"]["sent"] > 0
    assert json.loads((tmp_path / "report.json").read_text()) == report
    for name in ("ttft.png", "watch-a.png", "watch-b.png"):
        assert (tmp_path / name).exists()
