import re
from pathlib import Path

from prelude_proxy.core.domain import EngineKind
from prelude_proxy.engine.exposition import render_metrics
from prelude_proxy.engine.model import EngineConfig
from prelude_proxy.engine.scheduler import Engine

REAL_PAGE = Path(__file__).parent.parent / "fixtures" / "vllm_metrics.txt"
SAMPLE = re.compile(r"^([a-z_:]+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="')


def series(page: str) -> dict[str, set[str]]:
    """Label names by metric name."""
    found: dict[str, set[str]] = {}
    for line in page.splitlines():
        if match := SAMPLE.match(line):
            found.setdefault(match[1], set()).update(LABEL.findall(match[2] or ""))
    return found


def page_of(kind: EngineKind, profile, **more) -> str:
    config = EngineConfig()
    return render_metrics(kind, Engine(config, profile).stats(), config, "tiny", **({"gauges_lag": False} | more))


def test_vllm_names_and_labels_are_the_real_ones(profile):
    """Every line a real vLLM under load was seen to write is written here, with its labels and type."""
    real, ours = REAL_PAGE.read_text(), page_of(EngineKind.VLLM, profile)
    assert series(ours).keys() == series(real).keys()
    for name, labels in series(ours).items():
        assert labels <= series(real)[name]
        if name != "vllm:cache_config_info":
            assert labels == series(real)[name]
    types = {line for line in real.splitlines() if line.startswith("# TYPE")}
    assert {line for line in ours.splitlines() if line.startswith("# TYPE")} <= types


def test_a_lagging_page_still_has_its_cache_size(profile):
    """The lag zeroes load gauges only: what the cache is made of is no load."""
    page = page_of(EngineKind.VLLM, profile, gauges_lag=True)
    assert 'num_gpu_blocks="65536"} 1.0' in page


def test_each_kind_has_its_own_prefix(profile):
    """No engine shows another's names."""
    for kind, prefix in ((EngineKind.TGI, "tgi_"), (EngineKind.SGLANG, "sglang:")):
        assert all(name.startswith(prefix) for name in series(page_of(kind, profile)))
