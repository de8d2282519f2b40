"""One module a group of commands; each exports `commands`, which `cli.py` adds."""
