"""Change rules and models under load: on SIGHUP the configuration, and any time the model's file changes.

Everything new is read and checked before anything old is let go; a mistake is logged and the old stays. Rules and
models are exchanged between two requests, so no request is dropped or sees half of a change. What cannot change in a
running process (ports, pools, classes) is named in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from prelude_proxy.config import Config
from prelude_proxy.core.rules import Rule
from prelude_proxy.errors import ConfigError
from prelude_proxy.judge import Judge
from prelude_proxy.modelfile import load_model

log = logging.getLogger("prelude_proxy.reload")

_WATCH_S = 2.0
_LIVE = frozenset({"rules", "classifier", "logging"})


class Reloader:
    """Applies new configurations and models to a running judge."""

    def __init__(
        self,
        config: Config,
        judge: Judge,
        *,
        reread: Callable[[], Config] | None,
        make_rules: Callable[[Config], list[Rule]],
    ) -> None:
        """`reread` gives the configuration as it is on disk now; None: there is no file."""
        self._config = config
        self._judge = judge
        self._reread = reread
        self._make_rules = make_rules
        self._seen = {path: _stamp(path) for path in self._paths()}

    async def watch(self) -> None:
        """Load a model anew whenever its file has changed, until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_S)
            changed = [path for path in self._paths() if _stamp(path) != self._seen.get(path)]
            if changed:
                await self.load_models()

    async def reload(self) -> bool:
        """Read the configuration again and apply what can change; returns whether it was good."""
        try:
            fresh = self._reread() if self._reread is not None else self._config
        except ConfigError as error:
            log.warning("reload refused, the old configuration stays: %s", error)
            return False
        fixed = [
            name
            for name in Config.model_fields
            if name not in _LIVE and getattr(fresh, name) != getattr(self._config, name)
        ]
        if fixed:
            log.warning("changes in %s need a restart and are ignored until then", ", ".join(fixed))
        self._config = fresh
        self._judge.rules = self._make_rules(fresh)
        logging.getLogger().setLevel(fresh.logging.level.upper())
        return await self.load_models()

    async def load_models(self) -> bool:
        """Load the configured models and use them; returns whether all could be."""
        classifier, settings = self._judge.classifier, self._config.classifier
        self._seen = {path: _stamp(path) for path in self._paths()}
        if classifier is None:
            return True
        try:
            model = await asyncio.to_thread(load_model, settings.model)
            shadow = await asyncio.to_thread(load_model, settings.shadow_model) if settings.shadow_model else None
        except ConfigError as error:
            log.warning("the new model is refused, the old one stays: %s", error)
            return False
        classifier.adopt(model)
        classifier.set_shadow(shadow)
        log.info("model %s is in use", settings.model or "of the package")
        return True

    def _paths(self) -> list[Path]:
        settings = self._config.classifier
        return [path for path in (settings.model, settings.shadow_model) if path is not None]


def _stamp(path: Path) -> tuple[float, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime, status.st_size
