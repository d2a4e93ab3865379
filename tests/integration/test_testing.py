"""`customer_jobs.testing`: what docs/testing.md shows, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from customer_jobs import CustomerJobs, CustomerJobsError, UnknownJob, testing
from customer_jobs.database import open_engine
from tests.markdown import CHECKOUT, blocks

PAGE = [block for block in blocks("python") if block.page == "testing.md"]


def write_tests(directory: Path, *, without: str = "nothing") -> None:
    """The page's blocks as a user's test suite."""
    for block in PAGE:
        if without in block.text:
            continue
        name = "conftest.py" if "pytest_plugins" in block.text else f"test_{block.number}.py"
        (directory / name).write_text(block.text)


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    write_tests(tmp_path)

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )

    assert ran.returncode == 0, ran.stdout
    assert "6 passed" in ran.stdout


def test_a_job_is_ended_once(database_url: str) -> None:
    mine = CustomerJobs(open_engine(database_url))
    job = mine.create_customer({"email": "jenny.rosen@example.com"})
    testing.succeed(job, jobs=mine)

    with pytest.raises(CustomerJobsError, match=f"job {job.id} is succeeded; only a waiting job"):
        testing.fail(job, jobs=mine)

    testing.clear(mine)
    with pytest.raises(UnknownJob):
        testing.succeed(job, jobs=mine)
    assert mine.list() == []
    mine.engine.dispose()


def test_without_the_fixture_it_asks_whose_job_it_is(database_url: str) -> None:
    mine = CustomerJobs(open_engine(database_url))
    job = mine.create_customer({})

    with pytest.raises(CustomerJobsError, match="pass jobs="):
        testing.succeed(job)

    mine.engine.dispose()
