"""The command ``surgetank``. Exit codes: 0 done, 1 failed, 2 usage or configuration error."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import click

from engine.cli.audit import audit
from engine.cli.cancel import cancel
from engine.cli.config import config
from engine.cli.dead import dead
from engine.cli.limits import limits
from engine.cli.pause import pause, resume
from engine.cli.reweight import reweight
from engine.cli.send import send
from engine.cli.serve import serve
from engine.cli.topics import topics
from engine.cli.why import why
from engine.errors import ConfigError, EngineError


class Commands(click.Group):
    """Tells errors in a line and an exit code; a traceback is for what nobody foresaw."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command line's command."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            click.echo(str(error), err=True)
            ctx.exit(2)
        except EngineError as error:
            click.echo(f"surgetank: {error}", err=True)
            ctx.exit(1)
        except BrokenPipeError:
            raise  # click's: whoever read our output has gone
        except OSError as error:
            click.echo(f"surgetank: {error}", err=True)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("surgetank"), prog_name="surgetank")
def main() -> None:
    """Deliver sends from Kafka to messaging platforms: urgent first, in platform-size batches, inside every quota.

    \b
    First steps:
      surgetank config check surgetank.toml
      surgetank topics create -c surgetank.toml
      surgetank serve -c surgetank.toml
      surgetank send -c surgetank.toml basic sends.jsonl

    Exit codes: 0 done, 1 failed, 2 usage or configuration error.
    """


for command in (serve, send, config, topics, cancel, pause, resume, reweight, why, limits, dead, audit):
    main.add_command(command)
