"""Training end to end on a made-up workload, through the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from prelude_proxy.classifier import Classifier
from prelude_proxy.commands.classifier import evaluate, explain, train
from prelude_proxy.journal import Journal, JournalSettings
from prelude_proxy.modelfile import load_model
from prelude_proxy.training import baselines
from prelude_proxy.training.dataset import Row, read_rows
from prelude_proxy.training.evaluate import LADDER, Forecasts, forecast_rows, report_on
from prelude_proxy.training.metrics import CLASSES

from .synthetic import requests, write


def run(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "rows.jsonl", requests(900))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "own.model"
    result = run(train, "--data", data, "--out", out, "--rounds", 25, "--force", "--name", "tested")
    assert result.exit_code == 0, result.output
    assert "held out" in result.output
    return out


def test_a_trained_model_knows_its_workload(trained: Path, tmp_path: Path) -> None:
    """On rows it has not seen, by the serving code."""
    rows = list(read_rows(write(tmp_path / "test.jsonl", requests(200, seed=9))))
    report = report_on(rows, forecast_rows(rows, load_model(trained)))
    assert report.pooled.accuracy > 0.85
    assert report.pooled.kendall_tau is not None
    assert report.pooled.kendall_tau > 0.6
    assert load_model(trained).info.name == "tested"


def test_training_twice_gives_the_same_forecasts(data: Path, trained: Path, tmp_path: Path) -> None:
    """Nothing is left to chance."""
    again = tmp_path / "again.model"
    assert run(train, "--data", data, "--out", again, "--rounds", 25, "--force").exit_code == 0
    rows = list(read_rows(data))[:30]
    first, second = (forecast_rows(rows, load_model(path)).predicted for path in (trained, again))
    assert first.tolist() == second.tolist()


def test_a_better_model_is_not_replaced_unless_forced(data: Path, trained: Path, tmp_path: Path) -> None:
    """A two-round model against a good one: exit code 1, file untouched, and the report says both."""
    out = tmp_path / "model"
    out.write_bytes(trained.read_bytes())
    weak = ("--data", data, "--out", out, "--rounds", 2, "--depth", 1, "--json")
    refused = run(train, *weak)
    assert refused.exit_code == 1
    report = orjson.loads(refused.stdout)
    assert report["written"] is False
    assert report["new"]["log_loss"] > report["in_use"]["log_loss"]
    assert out.read_bytes() == trained.read_bytes()
    assert run(train, *weak, "--force").exit_code == 0
    assert out.read_bytes() != trained.read_bytes()


def test_a_source_can_be_left_out(data: Path, tmp_path: Path) -> None:
    """To test on a source the model has not seen."""
    out = tmp_path / "model"
    result = run(train, "--data", data, "--out", out, "--rounds", 2, "--exclude-source", "source0", "--force")
    assert result.exit_code == 0
    assert load_model(out).info.sources == ("source1",)


def test_a_journal_trains_a_model_for_its_traffic(tmp_path: Path) -> None:
    """From features alone, beside the shipped model that has not seen such answers."""
    classifier = Classifier(load_model(), LADDER, keeps_features=True)
    journal = Journal(JournalSettings(tmp_path / "journal"))
    journal.start()
    for row in read_rows(write(tmp_path / "rows.jsonl", requests(500, seed=3))):
        _, observation = classifier.classify(row.facts())
        journal.record(observation, row.output_tokens, censored=False, class_name="fast", ts=0.0)
    journal.close()
    out = tmp_path / "own.model"
    result = run(train, "--journal", tmp_path / "journal", "--out", out, "--rounds", 20, "--json")
    assert result.exit_code == 0, result.output
    report = orjson.loads(result.stdout)
    assert report["better"] is True
    assert report["new"]["accuracy"] > report["in_use"]["accuracy"]
    assert load_model(out).info.trained_rows == report["trained_rows"]


@pytest.mark.parametrize("content", ["", "{}\n", "nonsense\n"], ids=["empty", "no row", "no JSON"])
def test_bad_data_is_an_error_with_a_reason(tmp_path: Path, content: str) -> None:
    """Exit code 2 and a message, no traceback."""
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    for result in (run(train, "--data", file, "--out", tmp_path / "m"), run(evaluate, "--data", file)):
        assert result.exit_code == 2
        assert "error:" in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)


def test_evaluation_writes_a_prediction_a_row(data: Path, trained: Path, tmp_path: Path) -> None:
    """In order, with tokens, class and three probabilities; and the report in JSON."""
    out = tmp_path / "predictions.jsonl"
    result = run(evaluate, "--data", data, "--model", trained, "--predictions", out, "--json")
    assert result.exit_code == 0, result.output
    report = orjson.loads(result.stdout)
    assert set(report["sources"]) == {"source0", "source1"}
    assert report["pooled"]["rows"] == 900
    predictions = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert len(predictions) == 900
    assert set(predictions[0]) == {"predicted_tokens", "class", "probabilities"}
    assert set(predictions[0]["probabilities"]) == set(CLASSES)
    assert sum(predictions[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-4)


def test_online_evaluation_reveals_lengths_only_after_the_delay(data: Path) -> None:
    """With a delay longer than the file it is the static one; with none it is better on a foreign workload."""
    rows = list(read_rows(data))[:300]
    model = load_model()
    static = forecast_rows(rows, model)
    late = forecast_rows(rows, model, label_delay=len(rows))
    online = forecast_rows(rows, model, label_delay=10)
    assert static.predicted.tolist() == late.predicted.tolist()
    assert static.predicted[:11].tolist() == online.predicted[:11].tolist()
    assert report_on(rows, online).pooled.accuracy > report_on(rows, static).pooled.accuracy


def test_rows_the_proxy_would_refuse_are_counted(tmp_path: Path, trained: Path) -> None:
    """Forecast as standard, in their place."""
    rows = [*requests(5), {"request": {"model": 5, "messages": []}, "output_tokens": 3}]
    result = run(evaluate, "--data", write(tmp_path / "rows.jsonl", rows), "--model", trained, "--json")
    assert orjson.loads(result.stdout)["refused"] == 1


def test_only_what_training_kept_back_can_be_scored(data: Path, trained: Path) -> None:
    """The same rows in every run, fewer than all, none of a prompt that was trained on."""
    first, second = (run(evaluate, "--data", data, "--model", trained, "--held-out", "--json").stdout for _ in "ab")
    assert first == second
    assert 0 < orjson.loads(first)["pooled"]["rows"] < 300


def test_baselines_are_scored_beside(data: Path, trained: Path) -> None:
    """Five of them, on the same rows."""
    result = run(evaluate, "--data", data, "--model", trained, "--baselines", data, "--json")
    assert result.exit_code == 0, result.output
    scored = orjson.loads(result.stdout)["baselines"]
    assert set(scored) == {"constant", "prompt length", "three-bucket rule", "19 lexical features", "tenant history"}
    assert all(report["pooled"]["rows"] == 900 for report in scored.values())


def test_baselines_are_not_trained_on_what_is_kept_back(
    data: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one file gives both."""
    seen = []

    def spy(known: list[Row], rows: list[Row]) -> Forecasts:
        seen.append(({row.group for row in known}, {row.group for row in rows}))
        return constant(known, rows)

    constant = baselines.constant
    monkeypatch.setattr(baselines, "constant", spy)
    result = run(evaluate, "--data", data, "--model", trained, "--held-out", "--baselines", data, "--json")
    assert result.exit_code == 0, result.output
    [(known, tested)] = seen
    assert known
    assert tested
    assert not known & tested


def test_explain_says_class_interval_features_and_thresholds(trained: Path) -> None:
    """For people and for programs."""
    prompt = "Write a detailed essay on rivers, think step by step and give 9 examples."
    result = run(explain, "--prompt", prompt, "--model-name", "wordy-7b", "--model", trained, "--json")
    assert result.exit_code == 0, result.output
    answer = orjson.loads(result.stdout)
    assert answer["class"] in {"standard", "deep"}  # a model of 25 rounds is not sure
    assert answer["reason"] == "model"
    assert answer["interval"][0] < answer["predicted_tokens"] < answer["interval"][1]
    assert answer["features"]
    assert answer["thresholds"]["classes"]["fast"]["max_output_tokens"] == 64
    shown = run(explain, "--prompt", prompt, "--model", trained).output
    assert "because of model" in shown
    assert "SHAP" in shown


def test_explain_names_the_rule_of_a_configuration(tmp_path: Path) -> None:
    """First match wins, before the model."""
    config = tmp_path / "config.yaml"
    config.write_text("rules:\n  - name: night\n    when: {model: 'batch-*'}\n    class: deep\n")
    body = tmp_path / "request.json"
    body.write_bytes(orjson.dumps({"model": "batch-1", "messages": [{"role": "user", "content": "hi"}]}))
    result = run(explain, body, "--config", config, "--json")
    assert result.exit_code == 0, result.output
    answer = orjson.loads(result.stdout)
    assert (answer["class"], answer["reason"], answer["rule"]["name"]) == ("deep", "rule:night", "night")


def test_explain_refuses_what_the_proxy_would_refuse(tmp_path: Path) -> None:
    """With the status it would answer."""
    body = tmp_path / "request.json"
    body.write_text("[1]")
    result = run(explain, body)
    assert result.exit_code == 2
    assert "400" in result.output
