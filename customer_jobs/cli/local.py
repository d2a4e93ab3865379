"""The commands that run programs on this machine: sandbox, dev, demo."""

from __future__ import annotations

import typer

commands = typer.Typer()
