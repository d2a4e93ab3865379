"""The command line `customer-jobs`: which commands there are; what they do is in the modules beside."""

from __future__ import annotations

from typing import Annotated

import typer

from customer_jobs.cli import components, events, forgetting, importing, jobs, limits, local, operate, webhooks
from customer_jobs.cli.exits import PROGRAM, Commands

HELP = """Stripe customers as durable jobs: create them, fetch them, see what became of it.

The table of jobs is found by DATABASE_URL, the event stream by REDIS_URL. To try everything without either, run
`customer-jobs demo` or `customer-jobs dev` in the checkout.
"""

EXIT_CODES = """\b
Exit codes:
  0  fine
  1  the job failed
  2  bad input; nothing was written
  3  still running when the wait was over
  4  the database or Redis is out of reach
"""

app = typer.Typer(
    name=PROGRAM,
    cls=Commands,
    help=HELP,
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,  # Help is text that can be piped and searched.
    pretty_exceptions_enable=False,  # `Commands` says what went wrong.
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)
app.add_typer(jobs.commands)
app.add_typer(components.commands)
app.add_typer(importing.commands)
app.add_typer(events.commands, name="events")
app.add_typer(operate.commands)
app.add_typer(limits.commands)
app.add_typer(forgetting.commands)
app.add_typer(webhooks.commands)
app.add_typer(local.commands)


@app.callback(invoke_without_command=True)
def without_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from customer_jobs import __version__

        print(f"{PROGRAM} {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    app()
