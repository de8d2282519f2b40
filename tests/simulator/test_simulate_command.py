"""`prelude-proxy bench --simulate`."""

from __future__ import annotations

import json

from click.testing import CliRunner

from prelude_proxy.cli import main


def run(*arguments: str):
    """The command with a small workload."""
    return CliRunner().invoke(main, ["bench", "--simulate", "--seconds", "3", "--rounds", "1", *arguments])


def test_policies_are_compared_in_one_report():
    """The report is that of a live run, a target a policy."""
    result = run("--policy", "fcfs", "--policy", "prelude+oracle-classes", "--policy", "srpt-oracle", "--json")
    assert result.exit_code == 0, result.output
    targets = json.loads(result.stdout)["targets"]
    assert list(targets) == ["fcfs", "prelude+oracle-classes", "srpt-oracle"]
    assert all(target["failed"] == 0 for target in targets.values())


def test_engines_may_differ_and_load_is_a_share_of_what_they_can_do(tmp_path):
    """Batch slots go round; files are written as for a live run."""
    out = tmp_path / "out"
    result = run(
        "--engines", "3", "--max-num-seqs", "16,4", "--load", "0.5", "--prediction", "noisy", "--out", str(out)
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (out / "report.json").is_file()
    assert "prelude" in result.stdout


def test_the_proxys_configuration_counts(tmp_path):
    """Its classes and admission settings are those simulated."""
    config = tmp_path / "prelude.yaml"
    config.write_text("classes: {fast: {max_output_tokens: 1000}}\n")
    result = run("--policy", "prelude", "--prediction", "oracle", "--config", str(config), "--json")
    assert result.exit_code == 1
    assert "max_output_tokens" in result.output
    config.write_text("classes: {standard: {max_output_tokens: 2000}}\n")
    result = run("--policy", "prelude", "--prediction", "oracle", "--config", str(config), "--json")
    assert json.loads(result.stdout)["targets"]["prelude"]["classes"]["deep"]["as_class"] == 0.0


def test_wrong_use_is_said():
    """A target and a simulation at once, or an engine that cannot be."""
    assert run("--target", "http://localhost:1").exit_code == 2
    assert run("--max-num-seqs", "many").exit_code == 2
    assert run("--num-gpu-blocks", "2").exit_code != 0
