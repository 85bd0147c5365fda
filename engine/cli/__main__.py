"""``python -m engine.cli`` is ``surgetank``."""

from engine.cli import main

main(prog_name="surgetank")
