"""Wheels carry core and data path compiled if there is a C compiler; PRELUDE_COMPILE=0 leaves that out, =1 insists."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "scripts"))

from compiling import compile_into, outputs


class Compiled(BuildHookInterface[Any]):
    """Adds the extension modules to a wheel. An editable install stays plain Python: scripts/compile does that."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is made, with what will go into it."""
        wanted = os.environ.get("PRELUDE_COMPILE", "")
        if version == "editable" or wanted == "0":
            return
        root = Path(self.root)
        self._built = tempfile.TemporaryDirectory()
        try:
            compile_into(root, Path(self._built.name))
        except (Exception, SystemExit) as error:
            if wanted == "1":
                raise
            self.app.display_warning(f"nothing is compiled, it runs as plain Python: {error}")
            return
        for path in outputs(root):
            build_data["force_include"][str(Path(self._built.name) / path)] = str(path)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
