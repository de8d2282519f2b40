"""Changes under load: good ones apply between two requests, bad ones change nothing."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

import prelude_proxy
from prelude_proxy.app import App
from prelude_proxy.config import Config, load_config
from prelude_proxy.core.domain import Dialect, Endpoint, RequestFacts

GOOD = "rules: [{name: all, when: {}, class: deep}]\nlisten: {port: 0}\nadmin: {port: 0}\n"
SHIPPED = Path(prelude_proxy.__file__).parent / "models" / "default.model"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("listen: {port: 0}\nadmin: {port: 0}\n")
    return path


def app_of(path: Path) -> App:
    def reread() -> Config:
        return load_config(path)

    return App(reread(), reread=reread)


def class_of(app: App) -> str:
    facts = RequestFacts("/v1/embeddings", Endpoint.EMBEDDINGS, Dialect.OPENAI)
    facts.model = "m"
    return app.judge.judge(facts, 0.0)[0].classification.name


async def test_rules_apply_from_the_next_request_on(file):
    """A reload exchanges the rules."""
    app = app_of(file)
    assert class_of(app) == "oneshot"
    file.write_text(GOOD)
    assert await app.reloader.reload()
    assert class_of(app) == "deep"


@pytest.mark.parametrize("bad", ["rules: [", "rules: [{name: x, class: dep}]", "no_such_section: 1"])
async def test_a_bad_file_changes_nothing(file, bad, caplog):
    """The mistake is logged with its place, the old configuration stays."""
    file.write_text(GOOD)
    app = app_of(file)
    file.write_text(bad)
    assert not await app.reloader.reload()
    assert class_of(app) == "deep"
    assert str(file) in caplog.text


async def test_what_needs_a_restart_is_named(file, caplog):
    """Ports and classes do not change under a running process."""
    app = app_of(file)
    file.write_text(GOOD + "classes: {deep: {aging_s: 5}}\n")
    assert await app.reloader.reload()
    assert "classes need a restart" in caplog.text


async def test_a_model_is_exchanged_and_a_broken_one_is_not(file, tmp_path, caplog):
    """A trained model takes over without a restart; a damaged file is refused and the one in use stays."""
    model = tmp_path / "own.model"
    model.write_bytes(SHIPPED.read_bytes())
    file.write_text(f"classifier: {{model: {model}}}\n")
    app = app_of(file)
    before = app.judge.classifier.model
    assert await app.reloader.load_models()
    assert app.judge.classifier.model is not before
    in_use = app.judge.classifier.model
    model.write_bytes(b"torn")
    assert not await app.reloader.load_models()
    assert app.judge.classifier.model is in_use
    assert "the old one stays" in caplog.text


async def test_sighup_reloads_the_running_proxy(file):
    """The signal of old."""
    app = app_of(file)
    caught = []
    logging.getLogger("prelude_proxy.reload").setLevel(logging.INFO)

    def started(_: App) -> None:
        file.write_text(GOOD)
        os.kill(os.getpid(), signal.SIGHUP)

    async def reload() -> bool:
        caught.append(await type(app.reloader).reload(app.reloader))
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    app.reloader.reload = reload
    await app.run_until_signal(started)
    assert caught == [True]
    assert class_of(app) == "deep"
