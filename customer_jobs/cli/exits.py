"""How a command ends: the exit codes, and an error as one line on standard error."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import typer
from typer.core import TyperGroup

from customer_jobs.errors import CustomerJobsError, InvalidJob, Unavailable

PROGRAM = "customer-jobs"

#: Whatever is shown, these are not: Stripe's keys and webhook secrets, and the password within a URL.
_SECRET = re.compile(r"\b((?:[srp]k_(?:test|live)|whsec)_)\w+")
#: `password` itself is the placeholder of our own examples.
_PASSWORD = re.compile(r"(://[^\s/:@]*:)(?!password@)[^\s/]+@")

_NO_SUCH_TABLE = {"42P01", "3F000", "42703"}  # Source: https://www.postgresql.org/docs/current/errcodes-appendix.html


class Exit(IntEnum):
    """The exit codes; scripts depend on them."""

    FINE = 0  #: Done, or enqueued.
    JOB_FAILED = 1  #: The job waited for failed or was cancelled.
    BAD_INPUT = 2  #: Nothing was written.
    STILL_RUNNING = 3  #: The wait was over before the job was.
    OUT_OF_REACH = 4  #: The database or Redis.
    BUG = 70  #: EX_SOFTWARE of sysexits.h; the traceback is on standard error.
    INTERRUPTED = 130  #: 128 + SIGINT
    NO_READER = 141  #: 128 + SIGPIPE


class Commands(TyperGroup):
    """All commands; whatever one raises becomes an exit code and one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,  # noqa: ARG002 - Typer's signature
        complete_var: str | None = None,  # noqa: ARG002
        standalone_mode: bool = True,  # noqa: ARG002
        windows_expand_args: bool = True,  # noqa: ARG002
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        try:
            _require_text(words)
            with self.make_context(PROGRAM, words, **extra) as context:
                self.invoke(context)
            sys.stdout.flush()
        except typer.Exit as ending:
            sys.exit(ending.exit_code)
        except KeyboardInterrupt:
            sys.exit(Exit.INTERRUPTED)
        except BrokenPipeError:
            # Python flushes once more on its way out; there must be somebody who takes it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(Exit.NO_READER)
        except Exception as error:  # noqa: BLE001 - the outermost loop
            sys.exit(_report(error))
        sys.exit(Exit.FINE)


def examples(*commands: str) -> str:
    """The end of a command's help."""
    # A line with a backspace keeps Typer from filling the lines that follow.
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


def complain(text: str) -> None:
    """Say on standard error, in one line, what is wrong and what to do about it."""
    sys.stdout.flush()
    print(f"error: {one_line(text)}", file=sys.stderr)


def note(text: str) -> None:
    """Say something on standard error that is not the command's result."""
    sys.stdout.flush()
    print(without_secrets(text), file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """A text without line breaks, control characters and secrets."""
    words = " ".join(text.split())
    return without_secrets("".join(letter if letter.isprintable() else "�" for letter in words))


def without_secrets(text: str) -> str:
    return _PASSWORD.sub(r"\1****@", _SECRET.sub(r"\1****", text))


def _require_text(words: Sequence[str]) -> None:
    for number, word in enumerate(words, start=1):
        try:
            broken = "\x00" in word or not word.encode()
        except UnicodeEncodeError:
            broken = True
        if broken and word:
            raise InvalidJob(f"argument {number}", "is not UTF-8 text")


def _report(error: Exception) -> int:
    """The exit code for an error that has been said."""
    if isinstance(error, typer.TyperException):
        message = error.format_message().strip().rstrip(".?")
        complain(f"{message[:1].lower()}{message[1:]}; see `{_help_of(error)}`")
        return Exit.BAD_INPUT
    driver_error = _driver_error(error)
    if _is_not_migrated(driver_error):
        complain("the database has no tables of this version of customer-jobs yet; run `customer-jobs migrate`")
        return Exit.OUT_OF_REACH
    if isinstance(error, Unavailable):
        complain(f"{error}; is it running, and does the setting name it?")
        return Exit.OUT_OF_REACH
    if isinstance(error, CustomerJobsError):
        # A program that did not start has the end of its log under the first line.
        first, *log = str(error).split("\n  | ")
        complain(first)
        if log:
            note("\n".join(f"  | {line}" for line in log))
        return Exit.BAD_INPUT
    if driver_error is not None:
        # Only the first line: the next ones may quote the row, and with it personal data.
        complain(f"the database of DATABASE_URL refused: {(str(driver_error).strip() or '?').splitlines()[0]}")
        return Exit.OUT_OF_REACH
    note("".join(traceback.format_exception(error)))
    complain(f"{type(error).__name__} is a bug in customer-jobs; please report the traceback above")
    return Exit.BUG


def _help_of(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else PROGRAM} --help"


def _driver_error(error: BaseException) -> BaseException | None:
    """What the database's driver raised, if that is behind it."""
    # SQLAlchemy's DBAPIError, or an error translated from one; to import it takes longer than most commands.
    for each in (error, error.__cause__):
        if isinstance(driver_error := getattr(each, "orig", None), BaseException):
            return driver_error
    return None


def _is_not_migrated(driver_error: BaseException | None) -> bool:
    if state := getattr(driver_error, "sqlstate", None):
        return state in _NO_SUCH_TABLE
    return str(driver_error).startswith(("no such table", "no such column"))
