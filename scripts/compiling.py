"""The decision core and the way of a request as C: mypyc compiles the very source that runs interpreted otherwise.

The rest is run once a start, a scrape or a page, and stays interpreted. Compiled code checks types where they meet, and
what a library's stubs declare is not always true: where it is not, the source says `Any`. The interpreted form is the
same program, some two times slower.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGE = "prelude_proxy"
GROUP = f"{PACKAGE}__mypyc"
ON_THE_WAY = (
    "classifier",
    "dispatcher",
    "downstream",
    "exchange",
    "heartbeat",
    "intake",
    "judge",
    "pacing",
    "proxy",
    "recorder",
    "records",
    "relay",
    "upstream",
)
"""What each request or each piece of an answer passes, beside the core."""
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


def sources(root: Path) -> list[Path]:
    """What is compiled, relative to the repository's `root`."""
    core = sorted((root / PACKAGE / "core").glob("*.py"))
    chosen = [path for path in core if path.name != "__init__.py"]
    chosen += [root / PACKAGE / f"{name}.py" for name in ON_THE_WAY]
    return [path.relative_to(root) for path in chosen]


def outputs(root: Path) -> list[Path]:
    """The extension modules, relative to `root` or to `site-packages`: one of code, and a stub for each source."""
    return [Path(GROUP + SUFFIX), *(path.with_suffix(SUFFIX) for path in sources(root))]


def is_current(root: Path) -> bool:
    """Whether all extension modules in the tree are at least as new as every source."""
    built = [root / path for path in outputs(root)]
    if not all(path.exists() for path in built):
        return False
    newest = max((root / path).stat().st_mtime_ns for path in sources(root))
    return newest <= min(path.stat().st_mtime_ns for path in built)


def remove(root: Path) -> None:
    """Delete the extension modules in the tree, also those whose source is gone."""
    for path in (*root.glob(f"{GROUP}*.so"), *root.glob(f"{GROUP}*.pyd"), *(root / PACKAGE).rglob("*.so")):
        path.unlink()


def compile_into(root: Path, target: Path) -> None:
    """Compile; the extension modules appear under `target`.

    Raises:
        Exception: whatever mypyc, setuptools or the C compiler raise; there is no common class.
    """
    from mypyc.build import mypycify  # noqa: PLC0415  only who compiles needs it
    from setuptools import Distribution, Extension  # noqa: PLC0415
    from setuptools.command.build_ext import build_ext  # noqa: PLC0415

    class Build(build_ext):
        """Compiles the files of an extension side by side; by itself setuptools takes one after the other."""

        def build_extension(self, ext: Extension) -> None:
            def compiled(source: str) -> str:
                (made,) = self.compiler.compile(
                    [source], self.build_temp, include_dirs=ext.include_dirs, extra_postargs=ext.extra_compile_args
                )
                return made

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                ext.extra_objects += pool.map(compiled, ext.sources)
            ext.sources = []
            super().build_extension(ext)

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(root)  # mypyc names modules by their path from here
        try:
            extensions = mypycify(
                ["--config-file=", "--ignore-missing-imports", *map(str, sources(root))],
                opt_level="2",
                debug_level="0",
                group_name=PACKAGE,
                multi_file=True,
                target_dir=str(Path(scratch) / "c"),
            )
            command = Build(Distribution({"name": PACKAGE, "ext_modules": extensions}))
            command.build_temp = str(Path(scratch) / "objects")
            command.build_lib = str(target)
            command.ensure_finalized()
            command.run()
        finally:
            os.chdir(before)


def compile_in_place(root: Path) -> None:
    """Compile into the tree itself.

    Raises:
        Exception: as `compile_into`; the tree is then without extension modules.
    """
    remove(root)
    with tempfile.TemporaryDirectory() as built:
        compile_into(root, Path(built))
        for path in outputs(root):
            shutil.move(Path(built) / path, root / path)
            os.utime(root / path)
