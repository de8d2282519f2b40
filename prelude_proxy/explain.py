"""Why a request gets the class it gets: the rule, the structure, or the forecast and what pushed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prelude_proxy.classifier import Classifier
from prelude_proxy.config import build_config, load_config
from prelude_proxy.core.classify import (
    CLASS_HEADER,
    DEFAULT_CUTOFFS,
    class_probabilities,
    decide,
    ladder_of,
    whole_request,
)
from prelude_proxy.core.domain import Classification, ClassSpec, RequestFacts
from prelude_proxy.core.parse import parse_request
from prelude_proxy.core.rules import Rule, first_match
from prelude_proxy.modelfile import default_model_path, load_model, read_parts

if TYPE_CHECKING:
    from prelude_proxy.training.explain import Contribution


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that led to a class."""

    facts: RequestFacts
    classification: Classification
    probabilities: Mapping[str, float]
    """Of each class by output tokens, before prompt bounds and cut-offs."""
    rule: Rule | None
    pushed: Sequence[Contribution] | None
    """None when the training libraries are not installed."""
    classes: Sequence[ClassSpec]
    model: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        decision, facts, forecast = self.classification, self.facts, self.classification.forecast
        return {
            "class": decision.name,
            "reason": decision.reason,
            "confidence": round(decision.confidence, 4),
            "perhaps": None if decision.perhaps is None else decision.perhaps.name,
            "predicted_tokens": round(decision.expected_tokens, 1),
            "interval": None if forecast is None else [round(forecast.quantile(share), 1) for share in (0.1, 0.9)],
            "probabilities": {name: round(value, 4) for name, value in self.probabilities.items()},
            "rule": None
            if self.rule is None
            else {"name": self.rule.name, "class": self.rule.class_name, "reject": self.rule.reject},
            "request": {
                "endpoint": facts.endpoint.value,
                "model": facts.model,
                "prompt_tokens": facts.prompt_tokens,
                "max_tokens": facts.max_tokens,
                "num_choices": facts.num_choices,
                "class_header": facts.headers.get(CLASS_HEADER),
            },
            "features": None
            if self.pushed is None
            else [{"name": each.feature, "value": each.value, "factor": round(each.factor, 3)} for each in self.pushed],
            "thresholds": {
                "cutoffs": asdict(DEFAULT_CUTOFFS),
                "classes": {
                    spec.name: {
                        "max_output_tokens": spec.max_output_tokens,
                        "max_prompt_tokens": spec.max_prompt_tokens,
                    }
                    for spec in self.classes
                },
            },
            "length_model": self.model,
        }

    def show(self, console: Console) -> None:
        """Print for a reader."""
        data = self.as_dict()
        console.print(
            f"[bold]{data['class']}[/bold]  because of {escape(data['reason'])}, confidence {data['confidence']:.2f}"
        )
        if data["perhaps"] is not None:
            console.print(f"served as [bold]{data['perhaps']}[/bold] while few of those are held")
        interval = data["interval"]
        spread = f" (80 %: {interval[0]:.0f} to {interval[1]:.0f})" if interval else ""
        console.print(f"output tokens: {data['predicted_tokens']:.0f}{spread}")
        limit = data["request"]["max_tokens"]
        console.print(
            f"prompt tokens: about {data['request']['prompt_tokens']}; "
            f"max_tokens: {'not set' if limit is None else limit}"
        )
        if self.rule is not None and self.rule.reject is not None:
            console.print(f"rule [bold]{escape(self.rule.name)}[/bold] rejects it: {escape(self.rule.reject)}")
        table = Table("class", "probability", "output tokens up to", "prompt tokens up to", title="thresholds")
        for name, bounds in data["thresholds"]["classes"].items():
            share = data["probabilities"].get(name)
            table.add_row(name, "–" if share is None else f"{share:.3f}", *(_bound(b) for b in bounds.values()))
        console.print(table)
        if self.pushed is None:
            console.print("what pushed the forecast: install prelude-proxy[train] to see it")
        elif self.pushed:
            table = Table("feature", "value", "output tokens ×", title="what pushed the forecast (SHAP)")
            for each in self.pushed:
                table.add_row(each.feature, f"{each.value:.3g}", f"{each.factor:.2f}")
            console.print(table)


def _bound(value: int | None) -> str:
    return "–" if value is None else str(value)


def explain_request(
    body: bytes,
    *,
    path: str,
    headers: Mapping[str, str],
    config_path: Path | None = None,
    model_path: Path | None = None,
    top: int = 10,
) -> Explanation:
    """Classify `body` as a freshly started proxy would, and say why.

    Raises:
        ClientError: the proxy would refuse the request.
        ConfigError: the configuration or the model cannot be used.
    """
    classes, rules, configured, default = _configured(config_path)
    model_path = model_path or configured or default_model_path()
    facts = parse_request(path, body, headers, headers.get("x-tenant-id"))
    classifier = Classifier(load_model(model_path), classes)
    forecast, _ = classifier.classify(facts)
    rule = first_match(rules, facts)
    chosen = (rule.name, rule.class_name) if rule is not None and rule.class_name is not None else None
    return Explanation(
        facts=facts,
        classification=decide(facts, forecast, classes, rule=chosen, default=default),
        probabilities=class_probabilities(whole_request(forecast, facts), classes),
        rule=rule,
        pushed=_pushed(model_path, classifier, facts, top),
        classes=[spec for spec in classes if not spec.ladder] + ladder_of(classes),
        model=classifier.model.info.name,
    )


def _configured(path: Path | None) -> tuple[list[ClassSpec], list[Rule], Path | None, str]:
    """Classes, rules, model file and default class of a configuration, or of none."""
    config = build_config({}) if path is None else load_config(path)
    return config.class_specs(), config.core_rules(), config.classifier.model, config.classifier.default_class


def _pushed(path: Path, classifier: Classifier, facts: RequestFacts, top: int) -> list[Contribution] | None:
    try:
        from prelude_proxy.training.explain import contributions  # noqa: PLC0415 - xgboost is optional
    except ImportError:
        return None
    extract, probabilities = classifier.model.predict(facts)
    return contributions(read_parts(path), extract.values, np.array(list(probabilities)))[:top]
