"""Configuration: golden files that are valid, golden files that are not with what is said about them, and the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from prelude_proxy.config import Backend, Config, build_config, load_config, read_secret
from prelude_proxy.errors import ConfigError

FILES = Path(__file__).parent / "config"
VALID = sorted(FILES.glob("valid/*.yaml"))
INVALID = sorted(FILES.glob("invalid/*.yaml"))
EXAMPLE = Path(__file__).parents[1] / "config.example.yaml"


@pytest.mark.parametrize("path", [*VALID, EXAMPLE], ids=lambda path: path.stem)
def test_valid_file_survives_its_own_dump(path):
    """What `check-config` prints means the same as the file it was made from."""
    config = load_config(path)
    again = build_config(yaml.safe_load(config.dump_yaml()))
    removed = set(Config.model_validate({"classes": {}}).classes) - set(config.classes)
    assert {name: spec for name, spec in again.classes.items() if name not in removed} == config.classes
    assert again.model_copy(update={"classes": config.classes}) == config


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid_file_says_path_reason_and_nearest_name(path):
    """Each mistake is one line as in the golden text beside the file."""
    with pytest.raises(ConfigError) as mistake:
        load_config(path)
    expected = path.with_suffix(".txt").read_text()
    assert str(mistake.value).replace(str(path), path.name) + "\n" == expected


def test_every_golden_text_has_its_file():
    """No expected text outlives the file it is about."""
    assert {path.stem for path in FILES.glob("invalid/*.txt")} == {path.stem for path in INVALID}


def test_defaults_need_no_file():
    """Nothing given is a whole configuration with the four classes, most urgent first."""
    config = build_config(None)
    assert config == build_config({})
    assert [spec.name for spec in config.class_specs()] == ["oneshot", "fast", "standard", "deep"]
    assert config.listen.port == 8080


def test_example_file_is_the_default_configuration():
    """The commented example shows the defaults: what it sets is what would be anyway, but for pools, rules, tenants."""
    example, defaults = load_config(EXAMPLE), build_config({})
    differing = [name for name in Config.model_fields if getattr(example, name) != getattr(defaults, name)]
    assert set(differing) <= {"pools", "rules", "tenants", "classes", "listen", "admin", "logging"}


def test_classes_are_merged_over_the_defaults():
    """Given fields replace, others stay, null removes, new ones are added, `auto` is a reserve to be measured."""
    config = load_config(FILES / "valid" / "classes.yaml")
    specs = {spec.name: spec for spec in config.class_specs()}
    assert list(specs) == ["fast", "standard", "deep", "background"]
    assert (specs["fast"].max_output_tokens, specs["fast"].max_prompt_tokens) == (100, 4096)
    assert specs["fast"].reserve is None
    assert (specs["deep"].fleet_ceiling, specs["deep"].queue_size) == (10, 0)


def test_backend_names_never_show_credentials():
    """The name in metrics, logs and headers is host, port and path."""
    assert Backend(url="http://user:secret@engine.local:8000").display_name == "engine.local:8000"
    assert Backend(url="https://engine.local/base/").display_name == "engine.local/base"
    assert Backend(url="http://a", name="mine").display_name == "mine"


def test_secrets_come_from_the_environment(monkeypatch):
    """A variable that is not set, or empty, is an error that says where it was wanted."""
    monkeypatch.setenv("A_KEY", "value")
    assert read_secret("A_KEY", where="here") == "value"
    monkeypatch.setenv("A_KEY", "")
    with pytest.raises(ConfigError, match="A_KEY is not set"):
        read_secret("A_KEY", where="tenants[0].api_key_env")


def test_unreadable_files(tmp_path):
    """A file that is missing, a directory, or not text is an error, not a traceback."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "binary.yaml")


def test_every_field_is_documented():
    """Each field has a docstring: the documentation of the configuration is generated from them."""
    for section in Config.__mro__[1].__subclasses__():
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
