"""`prelude-proxy`: the command line. Each flag has an environment variable `PRELUDE_…`."""

from __future__ import annotations

import click

from prelude_proxy import __version__
from prelude_proxy.commands import bench, classifier, demo, engine, serve
from prelude_proxy.core import rates

_FORM = "plain Python" if str(rates.__file__).endswith(".py") else "compiled"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="prelude-proxy", message=f"%(prog)s %(version)s ({_FORM})")
def main() -> None:
    """A class-aware front door for self-hosted LLM fleets."""


for _module in (serve, classifier, bench, demo, engine):
    for _command in _module.commands:
        main.add_command(_command)


if __name__ == "__main__":
    main()
