"""`python -m prelude_proxy.engine`: the same as `prelude-proxy engine`."""

from prelude_proxy.commands.engine import engine

engine(prog_name="prelude-proxy engine")
