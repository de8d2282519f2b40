"""The command line: exit codes, flags and their environment variables, flags over a file."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from prelude_proxy import __version__
from prelude_proxy.cli import main
from prelude_proxy.commands import serve
from prelude_proxy.config import Config, build_config, load_config
from prelude_proxy.errors import ConfigError

FILES = Path(__file__).parent / "config"


@pytest.fixture
def run():
    """Runs the command line; the result with `exit_code`, `stdout`, `stderr`."""
    return lambda *arguments, **env: CliRunner().invoke(main, arguments, env=env)


@pytest.fixture
def started(run, monkeypatch):
    """Runs `serve` up to the point where it would open its ports; the configuration and API key it would use."""
    seen = {}

    class Stopped:
        def __init__(self, config: Config, *, api_key: str | None, **_: object) -> None:
            seen.update(config=config, api_key=api_key)
            raise ConfigError("stopped by the test")

    monkeypatch.setattr("prelude_proxy.app.App", Stopped)
    monkeypatch.setattr("prelude_proxy.logs.configure_logging", lambda level, form: None)

    def start(*arguments, **env) -> tuple[Config, str | None]:
        result = run("serve", *arguments, **env)
        assert "stopped by the test" in result.stderr, result.output
        return seen["config"], seen["api_key"]

    return start


def test_version_and_help(run):
    """`--version` and `--help` answer at once, with every command listed."""
    assert __version__ in run("--version").stdout
    text = run("--help").stdout
    for name in ("serve", "check-config", "engine", "demo", "bench"):
        assert name in text


def test_check_config_prints_the_effective_configuration(run):
    """A valid file: exit code 0, and YAML with the defaults filled in."""
    result = run("check-config", str(FILES / "valid" / "fleet.yaml"))
    assert result.exit_code == 0
    printed = yaml.safe_load(result.stdout)
    assert printed["listen"] == {"host": "127.0.0.1", "port": 8081, "backlog": 4096}
    assert set(printed["classes"]) == {"oneshot", "fast", "standard", "deep"}


@pytest.mark.parametrize("path", sorted(FILES.glob("invalid/*.yaml")), ids=lambda path: path.stem)
def test_check_config_exits_2_on_a_mistake(run, path):
    """An invalid file: exit code 2, the reason on standard error, nothing on standard output."""
    result = run("check-config", str(path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")


def test_check_config_of_a_missing_file(run):
    """No such file: exit code 2."""
    assert run("check-config", "/no/such/file.yaml").exit_code == 2


def test_backends_need_no_file(started):
    """`serve --backend A --backend B` is enough; `--worker-urls` is the same; the kind applies to both."""
    config, _ = started("--backend", "http://a:1", "--worker-urls", "http://b:2", "--backend-kind", "tgi")
    [pool] = config.pools
    assert [(backend.url, backend.kind.value) for backend in pool.backends] == [
        ("http://a:1", "tgi"),
        ("http://b:2", "tgi"),
    ]


FLAGS = [
    ("--port", "8123", lambda c: c.listen.port == 8123),
    ("--admin-port", "9123", lambda c: c.admin.port == 9123),
    ("--host", "127.0.0.9", lambda c: (c.listen.host, c.admin.host) == ("127.0.0.9", "127.0.0.9")),
    ("--admission", "fcfs", lambda c: c.admission.mode == "fcfs"),
    ("--model", "/some/where", lambda c: c.classifier.model == Path("/some/where")),
    ("--max-payload-size", "1234", lambda c: c.limits.max_body_bytes == 1234),
    ("--request-timeout-secs", "7.5", lambda c: c.timeouts.first_byte_s == 7.5),
    ("--queue-size", "12", lambda c: c.admission.max_queue_size == 12),
    ("--queue-timeout-secs", "3", lambda c: {k.queue_timeout_s for k in c.classes.values()} == {3.0}),
    ("--shutdown-grace-period-secs", "4", lambda c: c.timeouts.shutdown_grace_s == 4.0),
    ("--log-level", "debug", lambda c: c.logging.level == "debug"),
    ("--log-format", "json", lambda c: c.logging.format == "json"),
    ("--backend", "http://a:1", lambda c: c.pools[0].backends[0].url == "http://a:1"),
]


@pytest.mark.parametrize(("flag", "value", "holds"), FLAGS, ids=lambda part: part if isinstance(part, str) else "")
def test_flags_and_their_environment_variables(started, flag, value, holds):
    """Each flag does what it says, and so does its variable PRELUDE_…; the flag wins over the variable."""
    assert holds(started(flag, value)[0])
    variable = "PRELUDE_" + flag.removeprefix("--").replace("-", "_").upper()
    assert holds(started(**{variable: value})[0])


def test_switches_and_their_environment_variables(started):
    """On, off and not given are three things."""
    assert started()[0].classifier.enabled
    assert not started("--no-classifier")[0].classifier.enabled
    assert not started(PRELUDE_CLASSIFIER="false")[0].classifier.enabled
    assert not started("--no-access-log")[0].logging.access
    assert started("--trust-class-header")[0].admission.trust_class_header
    assert started(PRELUDE_TRUST_CLASS_HEADER="1")[0].admission.trust_class_header
    assert not started()[0].admission.trust_class_header


def test_several_backends_in_one_variable(started):
    """PRELUDE_BACKEND may hold several, separated by spaces."""
    config, _ = started(PRELUDE_BACKEND="http://a:1 http://b:2")
    assert [backend.url for backend in config.pools[0].backends] == ["http://a:1", "http://b:2"]


def test_api_key_is_no_part_of_the_configuration(started):
    """The key goes to the proxy and never into what is printed."""
    config, key = started("--api-key", "secret")
    assert key == "secret"
    assert "secret" not in config.dump_yaml()
    assert started(PRELUDE_API_KEY="secret")[1] == "secret"


@pytest.mark.parametrize("path", sorted(FILES.glob("valid/*.yaml")), ids=lambda path: path.stem)
def test_file_alone_is_the_file(path):
    """Without flags the effective configuration is exactly what the file says, removed classes included."""
    assert serve.effective_config(path, {}) == load_config(path)


@pytest.mark.parametrize("path", sorted(FILES.glob("valid/*.yaml")), ids=lambda path: path.stem)
def test_flags_go_over_any_file(path):
    """Flags add to a file of any shape and change nothing else."""
    plain = load_config(path)
    config = serve.effective_config(
        path, {"port": 1, "host": "h", "queue_timeout_secs": 9.0, "backends": ("http://new:1",), "log_level": "error"}
    )
    assert (config.listen.port, config.listen.host, config.logging.level) == (1, "h", "error")
    assert set(config.classes) == set(plain.classes)
    assert {spec.queue_timeout_s for spec in config.classes.values()} == {9.0}
    assert [b.url for b in config.pools[0].backends] == [*(b.url for b in plain.pools[0].backends), "http://new:1"]
    assert config.pools[1:] == plain.pools[1:]
    assert config.timeouts == plain.timeouts


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "70000"), "listen.port"),
        (("--backend", "nonsense"), "is not an http(s) URL"),
        (("--queue-timeout-secs", "0"), "queue_timeout_s"),
        (("--config", "/no/such.yaml"), "cannot be read"),
        (("--admission", "clever"), "Invalid value"),
        (("--no-such-flag",), "No such option"),
    ],
)
def test_bad_flags_exit_2(run, arguments, said):
    """A wrong flag is an exit code 2 and one clear line."""
    result = run("serve", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tenants: [{name: a, api_key_env: NOT_SET_ANYWHERE}]", "NOT_SET_ANYWHERE is not set"),
        ("pools: [{api_key_env: NOT_SET_ANYWHERE}]", "pools[0].api_key_env: environment variable NOT_SET_ANYWHERE"),
        ("classifier: {model: /nowhere}", "/nowhere"),
    ],
)
def test_what_cannot_be_built_exits_2_before_a_port_is_opened(run, monkeypatch, tmp_path, text, said):
    """A secret that is not there or a model that cannot be loaded stops the start with its reason."""
    monkeypatch.setattr("prelude_proxy.logs.configure_logging", lambda level, form: None)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    result = run("serve", "--config", str(path))
    assert result.exit_code == 2
    assert said in result.stderr


def test_every_option_of_serve_says_what_it_does():
    """No flag without help and an environment variable."""
    for option in serve.serve.params:
        assert isinstance(option, click.Option)
        assert option.help, option.opts
        assert str(option.envvar).startswith("PRELUDE_")


def test_effective_configuration_can_be_built_again():
    """The dump of defaults is a valid file."""
    assert build_config(yaml.safe_load(build_config({}).dump_yaml())) == build_config({})
