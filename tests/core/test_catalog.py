"""Model names → routes: declared, aliased, discovered, unknown."""

from __future__ import annotations

import pytest

from prelude_proxy.core.catalog import Catalog
from prelude_proxy.core.domain import ClassSpec
from prelude_proxy.core.health import Health, HealthPolicy
from prelude_proxy.core.limits import BackendSlots, PoolSlots
from prelude_proxy.core.window import Window
from prelude_proxy.errors import ClientError


def make_pool(name, *listed):
    pool = PoolSlots(name, [ClassSpec("standard", 0)])
    for index, models in enumerate(listed):
        backend = BackendSlots(
            hash((name, index)),
            f"{name}{index}",
            pool,
            Window(initial=4, maximum=8, feed=1),
            Health(HealthPolicy(), reachable=True),
        )
        backend.models = models
        pool.backends.append(backend)
    return pool


def names(route):
    return [backend.name for backend in route.backends]


def test_only_backends_that_list_a_model_serve_it():
    """Discovered lists decide inside a `*` pool; one that cannot say may be asked."""
    pool = make_pool("p", frozenset({"a"}), frozenset({"a", "b"}), None)
    catalog = Catalog([pool], models={"p": ["*"]}, aliases={})
    assert names(catalog.resolve("a")) == ["p0", "p1", "p2"]
    assert names(catalog.resolve("b")) == ["p1", "p2"]


def test_an_unknown_model_is_named_with_those_that_exist():
    """404 with the known names."""
    catalog = Catalog([make_pool("p", frozenset({"a", "b"}))], models={"p": ["*"]}, aliases={})
    with pytest.raises(ClientError, match=r"`c` does not exist here\. Known models: a, b\.") as caught:
        catalog.resolve("c")
    assert caught.value.status == 404


def test_declared_names_and_aliases_choose_the_pool():
    """Explicit names go before any `*`."""
    first, second = make_pool("any", frozenset({"x"})), make_pool("big", frozenset({"llama"}))
    catalog = Catalog([first, second], models={"any": ["*"], "big": ["llama"]}, aliases={"big": {"gpt-4o": "llama"}})
    assert catalog.resolve("llama").pool is second
    assert names(catalog.resolve("gpt-4o")) == ["big0"]
    assert catalog.resolve("x").pool is first
    assert catalog.resolve("x", "big").pool is second, "a rule's pool wins"
    assert catalog.model_names() == ["gpt-4o", "llama", "x"]


def test_before_any_discovery_every_model_may_wait():
    """Cold start: a pool without backends, or with silent ones, is not a reason for 404."""
    assert Catalog([make_pool("p")], models={"p": ["*"]}, aliases={}).resolve("a").backends == []
    assert names(Catalog([make_pool("p", None)], models={"p": ["*"]}, aliases={}).resolve("a")) == ["p0"]


def test_routes_follow_discovery_and_clients_cannot_make_more():
    """Names nobody lists share one route."""
    pool = make_pool("p", None)
    catalog = Catalog([pool], models={"p": ["*"]}, aliases={})
    assert catalog.resolve("a") is catalog.resolve("b")
    catalog.set_models(pool.backends[0], frozenset({"a"}))
    assert names(catalog.resolve("a")) == ["p0"]
    assert not catalog.set_models(pool.backends[0], frozenset({"a"})), "nothing changed"
    with pytest.raises(ClientError):
        catalog.resolve("b")


def test_a_name_is_required_where_the_endpoint_needs_one():
    """400 and the known names, else the first pool."""
    pool = make_pool("p", frozenset({"a"}))
    catalog = Catalog([pool], models={}, aliases={})
    with pytest.raises(ClientError, match=r"'model' is required\. Known models: a"):
        catalog.resolve(None, needs_name=True)
    assert catalog.resolve(None).pool is pool
