"""Tests as a Django app has them, run by Django's own runner: see tests/integration/test_django.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.test import TestCase, TransactionTestCase, skipUnlessDBFeature

from customer_jobs import ConflictError, CustomerJobs, InvalidJob, Job, NotRetryable, UnknownJob
from customer_jobs.django import jobs
from customer_jobs.testing import clear, fail, succeed
from tests.markdown import blocks

BODY = {"email": "jenny.rosen@example.com", "name": "Jenny Rosén % 😀", "metadata": {"plan": "pro"}}
CUSTOMER_ID = "cus_Jh3d8yZi678c2"


class PowerCutError(Exception):
    """What an app's transaction fails with."""


@contextmanager
def rolled_back() -> Iterator[None]:
    with suppress(PowerCutError), transaction.atomic():
        yield
        raise PowerCutError


def ids(found: list[Job]) -> set[str]:
    return {job.id for job in found}


class Transactions(TestCase):
    """What Django undoes is undone of ours, too."""

    def test_one_test_leaves_no_job(self) -> None:
        self.assertEqual(jobs.list(), [])
        jobs.create_customer(BODY)

    def test_to_the_next_one(self) -> None:
        self.assertEqual(jobs.list(), [])
        jobs.create_customer(BODY)

    def test_a_rollback_takes_user_and_job_along(self) -> None:
        with rolled_back():
            user = User.objects.create(username="jenny")
            jobs.create_customer(BODY, external_id=f"user-{user.pk}")

        self.assertEqual((User.objects.count(), jobs.list()), (0, []))

    def test_a_savepoint_takes_along_only_what_came_after_it(self) -> None:
        with transaction.atomic():
            kept = jobs.create_customer(BODY)
            with rolled_back():
                jobs.create_customer(BODY)
                jobs.fetch_customer(CUSTOMER_ID)
                jobs.create_customers([{"body": BODY}])
            also_kept = jobs.create_customer(BODY)

        self.assertEqual(ids(jobs.list()), {kept.id, also_kept.id})

    def test_an_error_of_the_apps_own_takes_the_job_along(self) -> None:
        User.objects.create(username="jenny")

        with self.assertRaises(IntegrityError), transaction.atomic():
            jobs.create_customer(BODY)
            User.objects.create(username="jenny")

        self.assertEqual(jobs.list(), [])

    def test_a_conflict_leaves_the_transaction_usable(self) -> None:
        with transaction.atomic():
            first = jobs.create_customer(BODY, external_id="user-1")
            with self.assertRaises(ConflictError) as caught:
                jobs.create_customer({"name": "Somebody else"}, external_id="user-1")
            with self.assertRaises(ConflictError):
                jobs.create_customers([{"body": BODY}, {"body": {}, "external_id": "user-1"}])
            User.objects.create(username="jenny")

        self.assertEqual(caught.exception.job.id, first.id)
        self.assertEqual((User.objects.count(), ids(jobs.list())), (1, {first.id}))

    def test_bad_input_leaves_the_transaction_usable(self) -> None:
        with transaction.atomic():
            with self.assertRaises(InvalidJob):
                jobs.create_customer({"api_key": "x"})
            User.objects.create(username="jenny")

        self.assertEqual((User.objects.count(), jobs.list()), (1, []))

    def test_django_sees_every_statement(self) -> None:
        seen: list[str] = []

        def look(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            seen.append(sql)
            return execute(sql, params, many, context)

        with self.assertNumQueries(3), connection.execute_wrapper(look):
            jobs.create_customer(BODY)

        (insert,) = (sql for sql in seen if "SAVEPOINT" not in sql)
        self.assertTrue(insert.startswith("INSERT INTO "))


class Results(TestCase):
    """What comes through Django's connection is what SQLAlchemy's would bring."""

    def test_a_job_reads_as_through_a_connection_of_its_own(self) -> None:
        due_at = datetime.now(UTC).replace(microsecond=123456) + timedelta(hours=7)
        made = jobs.create_customer(
            BODY,
            external_id="user-1",
            credential="eu",
            stripe_account="acct_1",
            priority="urgent",
            due_at=due_at,
            context={"tenant": [1, 2.5, None, True, "%s %(x)s :y"], "at": "2026-03-29T01:30:00"},
        )

        read = jobs.get(made.id)

        self.assertEqual(read, made)
        self.assertEqual((made.state, made.priority, made.credential), ("queued", 1, "eu"))
        self.assertEqual((made.stripe_account, made.external_id), ("acct_1", "user-1"))
        self.assertEqual(made.context, {"tenant": [1, 2.5, None, True, "%s %(x)s :y"], "at": "2026-03-29T01:30:00"})
        self.assertEqual(made.due_at, due_at)
        self.assertEqual(made.due_at.utcoffset(), timedelta(0))
        self.assertLess(abs(datetime.now(UTC) - made.created_at), timedelta(minutes=1))
        self.assertEqual(made.attempts, ())

    def test_a_job_ends_with_times_and_documents_as_they_were_written(self) -> None:
        before = datetime.now(UTC) - timedelta(seconds=1)
        job = jobs.create_customer(BODY, external_id="user-1")

        ended = succeed(job, {"balance": -5, "preferred_locales": ["de", "fr"]}, jobs=jobs)
        copy = jobs.customer(external_id="user-1")

        self.assertEqual(
            (ended.state, ended.outcome, ended.livemode, ended.attempt), ("succeeded", "created", False, 1)
        )
        assert ended.result is not None
        self.assertEqual(ended.result["response"]["name"], BODY["name"])
        self.assertEqual(ended.result["response"]["preferred_locales"], ["de", "fr"])
        (attempt,) = ended.attempts
        assert ended.started_at is not None
        assert ended.finished_at is not None
        self.assertTrue(before < ended.started_at <= ended.finished_at < before + timedelta(minutes=1))
        self.assertTrue(before < attempt.started_at < before + timedelta(minutes=1))
        self.assertEqual((attempt.replayed, attempt.ambiguous), (False, False))
        assert copy is not None
        self.assertEqual((copy.id, copy.external_id, copy.deleted), (ended.customer_id, "user-1", False))
        self.assertEqual(copy.data, ended.result["response"])
        self.assertEqual((copy.metadata or {})["plan"], "pro")

    def test_a_job_that_is_due_later_waits(self) -> None:
        soon = datetime.now(UTC) + timedelta(hours=1)

        first = jobs.fetch_customer(CUSTOMER_ID, due_at=soon)
        later = jobs.fetch_customer(CUSTOMER_ID, due_at=soon + timedelta(hours=1))
        earlier = jobs.fetch_customer(CUSTOMER_ID, priority="urgent")

        self.assertEqual(ids([first, later, earlier]), {first.id})
        self.assertEqual(later.due_at, soon)
        self.assertLess(abs(datetime.now(UTC) - earlier.due_at), timedelta(minutes=1))
        self.assertEqual(earlier.priority, 1)


class Calls(TestCase):
    """Every call works on Django's connection."""

    def test_the_same_external_id_and_body_is_the_same_job(self) -> None:
        first = jobs.create_customer(BODY, external_id="user-1")

        self.assertEqual(jobs.create_customer(BODY, external_id="user-1"), first)

    def test_many_come_back_in_their_order(self) -> None:
        rows = [{"body": {"name": f"Number {number}"}, "external_id": f"user-{number}"} for number in range(1200)]
        rows[7] = {"body": {"name": "Number 7"}, "priority": "bulk"}

        with self.assertNumQueries(2 + 2 + 3):  # our savepoint, that around all rows, the INSERTs
            made = jobs.create_customers(rows)

        self.assertEqual([job.external_id for job in made], [row.get("external_id") for row in rows])
        self.assertEqual((made[7].priority, made[8].priority), (4, 2))
        self.assertEqual(jobs.create_customers(rows[:5]), made[:5])
        self.assertEqual(len(jobs.list(limit=5000)), 1200)

    def test_equal_waiting_fetches_are_one_job(self) -> None:
        first = jobs.fetch_customer(CUSTOMER_ID, context={"n": 1})

        self.assertEqual(jobs.fetch_customer(CUSTOMER_ID, context={"n": 1}), first)
        self.assertNotEqual(jobs.fetch_customer(CUSTOMER_ID, context={"n": 2}).id, first.id)

    def test_a_list_goes_page_by_page_and_filters(self) -> None:
        made = [jobs.create_customer({}, external_id=f"user-{number}") for number in range(3)]

        (latest,) = jobs.list(limit=1)
        rest = jobs.list(before=latest)

        in_order = sorted(made, key=lambda job: (job.created_at, job.id), reverse=True)
        self.assertEqual([latest, *rest], in_order)
        self.assertEqual(ids(jobs.list(external_id="user-1", state=["queued", "failed"])), {made[1].id})
        self.assertEqual(jobs.list(state="failed"), [])
        self.assertEqual(jobs.list(request_id="req_1"), [])

    def test_a_waiting_job_is_cancelled_once(self) -> None:
        job = jobs.create_customer(BODY)

        self.assertTrue(jobs.cancel(job.id))
        self.assertFalse(jobs.cancel(job.id))
        self.assertEqual(jobs.wait(job.id, 0).state, "cancelled")

    def test_a_failed_job_is_retried_by_a_new_one(self) -> None:
        job = jobs.create_customer(BODY, external_id="user-1", context=[1])
        with self.assertRaises(NotRetryable):
            jobs.retry(job.id)

        failed = fail(job, {"code": "email_invalid", "param": "email"}, jobs=jobs)
        retried = jobs.retry(job.id)

        assert failed.error is not None
        self.assertEqual((failed.state, failed.error["code"]), ("failed", "email_invalid"))
        self.assertEqual((retried.retry_of, retried.external_id, retried.context), (job.id, "user-1", [1]))
        self.assertEqual(jobs.retry(job.id), retried)

    def test_what_is_not_there_is_said(self) -> None:
        self.assertIsNone(jobs.get("0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d"))
        self.assertIsNone(jobs.customer(external_id="user-1"))
        with self.assertRaises(UnknownJob):
            jobs.wait("0b1c9f1e-5b0c-4b55-9d2f-0c8b1b0f6a1d", 0)


class Waiting(TransactionTestCase):
    """What a test within a transaction cannot see; Django empties only tables of its own after each."""

    def tearDown(self) -> None:
        clear(jobs)

    def test_nothing_is_left_of_one_test(self) -> None:
        self.assertEqual(jobs.list(), [])
        succeed(jobs.create_customer(BODY), jobs=jobs)

    def test_in_the_next_one(self) -> None:
        self.assertEqual((jobs.list(), jobs.customer(external_id="user-1")), ([], None))
        succeed(jobs.create_customer(BODY, external_id="user-1"), jobs=jobs)

    @skipUnlessDBFeature("has_select_for_update")  # SQLite's database of a test is for one thread at a time.
    def test_waiting_holds_no_transaction_and_ends_with_the_job(self) -> None:
        job = jobs.create_customer(BODY)
        waiting = _backend()
        states: list[str] = []

        def work() -> None:
            try:
                while "idle" not in states and len(states) < 1000:
                    states.append(_state_of(waiting))
                succeed(job, jobs=jobs)
            finally:
                connection.close()

        thread = threading.Thread(target=work)
        thread.start()
        ended = jobs.wait(job.id, 20)
        thread.join()

        self.assertEqual(ended.state, "succeeded")
        self.assertEqual(states[-1], "idle")

    def test_both_sides_see_each_others_jobs(self) -> None:
        theirs = CustomerJobs(jobs.engine)
        made = jobs.create_customer(BODY, context=["Django"])
        also = theirs.create_customer(BODY, context=["SQLAlchemy"])

        self.assertEqual(theirs.get(made.id), jobs.get(made.id))
        self.assertEqual(jobs.get(also.id), theirs.get(also.id))
        self.assertEqual(jobs.get(made.id), made)
        self.assertEqual(theirs.get(also.id), also)


def _backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def _state_of(pid: int) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [pid])
        return str(cursor.fetchone()[0])


class Documented(TestCase):
    """What docs/producers.md tells a Django app to write."""

    def test_a_sign_up_makes_user_and_job_or_neither(self) -> None:
        (text,) = (each.text for each in blocks("python") if each.page == "producers.md" and "atomic" in each.text)
        page: dict[str, Any] = {}
        exec(text, page)

        with rolled_back():
            page["sign_up"](SimpleNamespace(save=lambda: User.objects.create(username="undone")))
        user = page["sign_up"](SimpleNamespace(save=lambda: User.objects.create(username="jenny")))

        (job,) = jobs.list()
        self.assertEqual((User.objects.get(), job.external_id), (user, str(user.pk)))
