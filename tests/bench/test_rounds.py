from __future__ import annotations

import pytest

from prelude_proxy.bench.fleet import free_ports
from prelude_proxy.bench.rounds import TargetError, first_model, run_rounds, summaries_of
from prelude_proxy.bench.wire import Target, Wire
from prelude_proxy.bench.workload import mix_plan


async def test_rounds_interleave_and_rotate(engine_url: str) -> None:
    """Every target gets every plan, and another target goes first in each round."""
    order: list[str] = []
    targets = [Target(name, engine_url, Wire("demo")) for name in ("one", "two")]
    plans = [mix_plan({"fast": 1.0}, 50, 0.1, seed) for seed in (1, 2)]

    def note(target: Target, _: object) -> None:
        if not order or order[-1] != target.name:
            order.append(target.name)

    results = await run_rounds(
        targets,
        plans,
        warmup=plans[0][:1],
        watch={"one": {"engine": f"{engine_url}/metrics"}},
        on_done=note,
    )
    assert order in (["one", "two", "one"], ["one", "two", "two", "one"])
    assert [[len(run.records) for run in runs] for runs in results.values()] == [[len(plan) for plan in plans]] * 2
    assert results["one"][0].samples[0].values["engine.running"] == 2.0
    medians, rounds = summaries_of(results, {"fast": 5.0})
    assert [summary.target for summary in medians] == ["one", "two"]
    assert all(summary.goodput == 1.0 for summary in medians)
    assert [len(each) for each in rounds.values()] == [2, 2]


async def test_the_first_model_is_asked_for(engine_url: str) -> None:
    """Without a name the target's own first model is used."""
    assert await first_model(engine_url) == "demo"


async def test_a_target_that_is_not_there_is_named() -> None:
    """The error says which URL does not answer."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(TargetError, match=f"{url} does not answer"):
        await first_model(url)


async def test_a_target_without_models_is_explained(engine_url: str) -> None:
    """An answer that is no model list asks for --model."""
    with pytest.raises(TargetError, match="--model"):
        await first_model(f"{engine_url}/health?x=")
