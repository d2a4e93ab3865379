"""`customer-jobs import`: a file of customers becomes jobs once, however often it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from customer_jobs import CustomerJobs
from customer_jobs.cli import app, importing
from customer_jobs.schema import jobs
from tests.builders import rows

CSV = "email,name,metadata.plan,address.city,external_id\na@example.com,Ann,pro,,u1\nb@example.com,Bob,,Paris,u2\n"
BODIES = {
    "u1": {"email": "a@example.com", "name": "Ann", "metadata": {"plan": "pro"}},
    "u2": {"email": "b@example.com", "name": "Bob", "address": {"city": "Paris"}},
}


def run(url: str, *flags: str, said: str | bytes = "") -> Result:
    return CliRunner().invoke(app, ["import", *flags], env={"DATABASE_URL": url}, input=said)


def file(directory: Path, content: str | bytes, name: str = "customers.csv") -> str:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def bodies(engine: Engine) -> dict[str, Any]:
    return {row["external_id"]: row["payload"]["body"] for row in rows(engine, jobs)}


def test_each_row_is_a_job(engine: Engine, database_url: str, tmp_path: Path) -> None:
    result = run(database_url, file(tmp_path, CSV))

    assert (result.exit_code, result.stdout) == (0, "enqueued 2 jobs\n"), result.output
    assert bodies(engine) == BODIES
    assert {(row["kind"], row["state"], row["priority"]) for row in rows(engine, jobs)} == {
        ("customer.create", "queued", 4)
    }


@pytest.mark.parametrize(
    "content",
    [
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        "\ufeff" + CSV,
        CSV.replace("\n", "\r\n"),
        CSV.replace("Ann", '"Ann"') + "\n\n,,,,\n",
        "".join(json.dumps(body | {"external_id": key}) + "\n" for key, body in BODIES.items()),
        "\n".join(json.dumps({"body": body, "external_id": key}) for key, body in BODIES.items()),
    ],
    ids=["semicolons", "tabs", "byte order mark", "Windows", "quotes and empty lines", "JSON", "JSON with body"],
)
def test_files_as_people_have_them(engine: Engine, database_url: str, tmp_path: Path, content: str) -> None:
    result = run(database_url, file(tmp_path, content))

    assert result.exit_code == 0, result.output
    assert bodies(engine) == BODIES


def test_standard_input(engine: Engine, database_url: str) -> None:
    result = run(database_url, "-", "--priority", "low", "--stripe-account", "acct_1", "--json", said=CSV)

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"rows": 2, "enqueued": 2, "known": 0, "conflicts": [], "dry_run": False}
    assert {(row["priority"], row["stripe_account"]) for row in rows(engine, jobs)} == {(3, "acct_1")}


def test_a_second_run_makes_nothing_twice(engine: Engine, database_url: str, tmp_path: Path) -> None:
    path = file(tmp_path, CSV)
    run(database_url, path)
    before = rows(engine, jobs)

    again = run(database_url, path)

    assert (again.exit_code, again.stdout) == (0, "enqueued 0 jobs, 2 were there before\n")
    assert rows(engine, jobs) == before


def test_a_run_that_broke_off_is_resumed(
    engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH_SIZE", 10)
    customers = [f"{number}@example.com,u{number}" for number in range(35)]
    head = "email,external_id"
    # The first 20 rows: what two batches of a run that was killed in the third have left behind.
    run(database_url, file(tmp_path, "\n".join([head, *customers[:20]])))
    whole = file(tmp_path, "\n".join([head, *customers]))

    resumed = run(database_url, whole)

    assert resumed.stdout == "enqueued 15 jobs, 20 were there before\n"
    assert len(rows(engine, jobs)) == 35


def test_bad_rows_are_named_and_nothing_is_enqueued(engine: Engine, database_url: str, tmp_path: Path) -> None:
    content = (
        "email,name,id,external_id\n"
        "good@example.com,Ann,,u1\n"
        '"two\nlines@example.com",Bob,,u2\n'
        "c@example.com,Cy,cus_1,u3\n"
        "d@example.com,Di,\n"
        "e@example.com,Ed,,\n"
        "other@example.com,Ann,,u1\n"
        ",,,u4\n"
    )

    result = run(database_url, file(tmp_path, content))

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "line 5: id: is not a parameter of a customer; leave it out of the body",
        "line 6: row: has 3 cells where the first line has 4",
        "line 7: external_id: is missing: a second run would create this customer once more",
        "line 8: external_id: 'u1' is that of line 2, which says otherwise",
        "line 9: body: is empty: the row names nothing of a customer",
        "error: 5 rows are bad; nothing was enqueued; to take rows without one all the same: --no-external-ids",
    ]
    assert rows(engine, jobs) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"email": "a@example.com", "external_id": "u1"}]', "line 1: first line: begins a list; put each object on"),
        ('\n[\n{"email": "a@example.com", "external_id": "u1"}\n]\n', "line 2: first line: begins a list"),
        ("a" * 200_000 + ",external_id\nx,u1\n", "line 1: first line: is not CSV: field larger than field limit"),
    ],
    ids=["a list", "a list of several lines", "a name without end"],
)
def test_a_file_of_another_kind_is_told_so(database_url: str, tmp_path: Path, content: str, said: str) -> None:
    result = run(database_url, file(tmp_path, content))

    assert result.exit_code == 2
    assert result.stderr.startswith(said)
    assert result.stderr.endswith("error: 1 row is bad; nothing was enqueued\n")


def test_many_bad_rows_are_not_all_named(database_url: str, tmp_path: Path) -> None:
    result = run(database_url, file(tmp_path, "email\n" + "a@example.com\n" * 25))

    assert len(result.stderr.splitlines()) == 22
    assert "… and 5 more" in result.stderr


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "FILE: has no rows"),
        ("email,external_id\n", "FILE: has no rows"),
        ("email,,external_id\na,b,c", "line 1: first line: must name every column; column 2 has no name"),
        ("email,email\na,b", "line 1: first line: names 'email' twice"),
        ('email,external_id\n"a,b', "line 2: row: is not CSV: unexpected end of data"),
        ("metadata,metadata.plan,external_id\na,b,c", "line 2: metadata.plan: stands beside a column 'metadata'"),
        ('{"email": 1, "external_id": "u"}', "line 1: email: must be text, not a number"),
        ('{"name": "a"', "line 1: row: is not JSON (column 13)"),
        ('{"name": "a", "external_id": "u"}\n[]', "line 2: row: must be a JSON object"),
        ('{"body": {}, "name": "a"}', "line 1: body: stands beside 'name'; put all parameters into it"),
        (b"email\n\xff\n", "is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_explained(
    engine: Engine, database_url: str, tmp_path: Path, content: str | bytes, problem: str
) -> None:
    result = run(database_url, file(tmp_path, content))

    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in result.stderr
    assert rows(engine, jobs) == []


@pytest.mark.parametrize(
    "flags",
    [["none.csv"], ["--kind", "customer.update", "-"], ["--priority", "now", "-"], ["--stripe-account", "x", "-"]],
)
def test_a_flag_that_cannot_be_read_is_one_line(database_url: str, flags: list[str]) -> None:
    result = run(database_url, *flags, said=CSV)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_rows_without_an_id_are_taken_when_told_so(engine: Engine, database_url: str, tmp_path: Path) -> None:
    path = file(tmp_path, "email\na@example.com\na@example.com\n")

    result = run(database_url, path, "--no-external-ids")

    assert (result.exit_code, len(rows(engine, jobs))) == (0, 2)


def test_an_id_that_was_used_otherwise_is_named_and_keeps_nobody_out(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    held = CustomerJobs(engine).create_customer({"email": "else@example.com"}, external_id="u1")

    result = run(database_url, file(tmp_path, CSV), "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "rows": 2,
        "enqueued": 1,
        "known": 0,
        "conflicts": [{"line": 2, "external_id": "u1", "job_id": held.id}],
        "dry_run": False,
    }
    assert "1 rows were not enqueued" in result.stderr
    assert bodies(engine) == {"u1": {"email": "else@example.com"}, "u2": BODIES["u2"]}


def test_a_dry_run_writes_nothing(engine: Engine, tmp_path: Path) -> None:
    result = run("postgresql://app@127.0.0.1:1/app", file(tmp_path, CSV), "--dry-run")

    assert (result.exit_code, result.stdout) == (0, "2 rows are good; nothing was enqueued\n")
    assert rows(engine, jobs) == []


def test_customers_that_are_at_stripe_get_linked(engine: Engine, database_url: str, tmp_path: Path) -> None:
    path = file(tmp_path, "customer_id,external_id\ncus_1,u1\ncus_2,u2\n")

    first = run(database_url, path, "--kind", "customer.fetch")
    again = run(database_url, path, "--kind", "customer.fetch")

    assert (first.stdout, again.stdout) == ("enqueued 2 jobs\n", "enqueued 0 jobs, 2 were there before\n")
    assert {(row["customer_id"], row["external_id"]) for row in rows(engine, jobs)} == {
        ("cus_1", "u1"),
        ("cus_2", "u2"),
    }


def test_a_database_out_of_reach_is_one_line(tmp_path: Path) -> None:
    result = run("postgresql://app@127.0.0.1:1/app", file(tmp_path, CSV))

    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.count("\n") == 1
