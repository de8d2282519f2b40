"""Model name → route. Names come from the configuration, from aliases, and from what backends list themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from prelude_proxy.core.limits import BackendSlots, PoolSlots, Route
from prelude_proxy.errors import ClientError

ANY: Final = "*"
_NAMES_SHOWN: Final = 20


class Catalog:
    """Which pool and which of its backends serve a model."""

    def __init__(
        self,
        pools: Iterable[PoolSlots],
        *,
        models: Mapping[str, Sequence[str]],
        aliases: Mapping[str, Mapping[str, str]],
    ) -> None:
        """`models` and `aliases` are by pool name, as configured."""
        self._pools = {pool.name: pool for pool in pools}
        self._declared = {name: tuple(models.get(name, (ANY,))) for name in self._pools}
        self._aliases = {name: dict(aliases.get(name, {})) for name in self._pools}
        self._routes: dict[tuple[str, str | None], Route] = {}

    def set_models(self, backend: BackendSlots, models: frozenset[str] | None) -> bool:
        """`backend` lists these models (None: it cannot say). Returns whether that changed anything."""
        if backend.models == models:
            return False
        backend.models = models
        self.reattach(backend.pool)
        return True

    def reattach(self, pool: PoolSlots) -> None:
        """Rebuild the routes of `pool` after its backends or their models changed."""
        for (name, _), route in self._routes.items():
            if name == pool.name:
                route.attach(self._eligible(pool, route.model))

    def resolve(self, model: str | None, pool: str | None = None, *, needs_name: bool = False) -> Route:
        """The route for `model`, in `pool` if a rule named one; for a request that names none, the first pool's.

        Raises:
            ClientError: 404, nobody serves it; 400, it names no model though its endpoint `needs_name`.
        """
        if pool is not None and (model is not None or not needs_name):
            return self._route(self._pools[pool], model)
        if model is None:
            if needs_name:
                raise ClientError(f"'model' is required.{self._names_hint()}", param="model")
            return self._route(next(iter(self._pools.values())), None)
        for name, declared in self._declared.items():
            if model in declared:
                return self._route(self._pools[name], model)
            if model in self._aliases[name]:
                return self._route(self._pools[name], self._aliases[name][model])
        for name, declared in self._declared.items():
            if ANY in declared and self._may_serve(self._pools[name], model):
                return self._route(self._pools[name], model)
        raise ClientError(
            f"The model `{model}` does not exist here.{self._names_hint()}",
            status=404,
            param="model",
            kind="model_not_found",
        )

    def model_names(self) -> list[str]:
        """Every name a client may use."""
        names: set[str] = set()
        for pool in self._pools.values():
            names.update(name for name in self._declared[pool.name] if name != ANY)
            names.update(self._aliases[pool.name])
            if ANY in self._declared[pool.name]:
                for backend in pool.backends:
                    names.update(backend.models or ())
        return sorted(names)

    def _may_serve(self, pool: PoolSlots, model: str) -> bool:
        """Some backend lists it, or is not known well enough to say no."""
        return any(backend.models is None or model in backend.models for backend in pool.backends) or not pool.backends

    def _route(self, pool: PoolSlots, model: str | None) -> Route:
        # names nobody lists share one route: clients must not be able to make routes without bound
        known = model is not None and any(model in (backend.models or ()) for backend in pool.backends)
        key = (pool.name, model if known else None)
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = Route(pool, key[1])
            route.attach(self._eligible(pool, key[1]))
        return route

    def _eligible(self, pool: PoolSlots, model: str | None) -> list[BackendSlots]:
        """Backends for `model`; all of them when none says it has it (an alias only the engine understands)."""
        serving = [backend for backend in pool.backends if backend.models is None or model in backend.models]
        return serving if model is not None and serving else pool.backends

    def _names_hint(self) -> str:
        names = self.model_names()
        if not names:
            return ""
        shown = ", ".join(names[:_NAMES_SHOWN])
        return f" Known models: {shown}{', …' if len(names) > _NAMES_SHOWN else '.'}"
