"""Every word of the domain, once: kinds, states, verdicts, outcomes, priorities, event types; no behaviour."""

from enum import IntEnum, StrEnum


class Kind(StrEnum):
    """What a job asks of Stripe; also the name of its Celery task and the stem of its event types."""

    CUSTOMER_CREATE = "customer.create"  #: POST /v1/customers
    CUSTOMER_FETCH = "customer.fetch"  #: GET /v1/customers/{id}


class State(StrEnum):
    """Where a job stands. Nothing returns to `queued`; the last three are final for ever.

    queued → dispatched → running → succeeded | failed | retrying; retrying → dispatched.
    """

    QUEUED = "queued"  #: The producer inserted it. The dispatcher takes it out; a crash changes nothing.
    DISPATCHED = "dispatched"  #: Handed to Celery under a short lease. Unclaimed by then, it becomes `retrying`.
    RUNNING = "running"  #: A worker thread claimed it and extends its lease. Unextended, the attempt is abandoned.
    RETRYING = "retrying"  #: Waits for `due_at`. The dispatcher takes it out, as from `queued`.
    SUCCEEDED = "succeeded"  #: Stripe's answer is in `result`.
    FAILED = "failed"  #: The reason, and what to do about it, is in `error`.
    CANCELLED = "cancelled"  #: Taken back before Stripe could have heard of it.


WAITING_STATES = (State.QUEUED, State.RETRYING)  #: What the dispatcher chooses from.
IN_FLIGHT_STATES = (State.DISPATCHED, State.RUNNING)  #: Somebody holds a lease on it.
FINAL_STATES = (State.SUCCEEDED, State.FAILED, State.CANCELLED)  #: Each has exactly one completion event.


class Verdict(StrEnum):
    """What one attempt came to."""

    SUCCEEDED = "succeeded"  #: Stripe answered with the object.
    RETRY = "retry"  #: Transient: worth another attempt.
    RATE_LIMITED = "rate_limited"  #: Stripe did not execute it; it uses up no attempt.
    FAILED = "failed"  #: Permanent: the same request would fail again.
    ABANDONED = "abandoned"  #: Its worker fell silent; nobody knows what came of it.


class Outcome(StrEnum):
    """How a job ended well."""

    CREATED = "created"  #: Stripe made the customer for this request.
    REPLAYED = "replayed"  #: An earlier attempt had made it; Stripe repeated its answer.
    ADOPTED = "adopted"  #: An earlier attempt had made it; it was found by our metadata.
    LINKED = "linked"  #: The external_id already belonged to a customer; no call was made.
    FOUND = "found"  #: Stripe returned the customer.
    DELETED = "deleted"  #: Stripe says the customer was deleted.
    FRESH = "fresh"  #: The local copy was young enough; no call was made.


class Priority(IntEnum):
    """Order of dispatch, strict; a job due for 15 minutes counts one higher."""

    URGENT = 1  #: A person is waiting.
    DEFAULT = 2  #: Ordinary traffic.
    LOW = 3  #: May wait for ordinary traffic.
    BULK = 4  #: Backfills and imports.


WORKER_SILENT_SECONDS = 10  #: A worker that was not seen for longer is not there.
KEY_REFUSED = "Stripe refused the key"  #: So begins the reason of a pause that a new key lifts.
LOOK_COUNTS_SECONDS = 15  #: A leader that has not looked for due jobs for longer does not dispatch.


class Lease(StrEnum):
    """The rows of `leases`."""

    LEAD = "dispatcher"  #: Who holds it dispatches, relays, rescues and prunes.
    LOOKS = "looks"  #: Kept by whoever leads, for as long as it does look for due jobs.


EVENT_TYPE_PREFIX = "customer_jobs"  #: Keeps our CloudEvents types apart from everybody else's.


def event_type(kind: str, state: State) -> str:
    """`customer_jobs.customer.create.succeeded` and the like."""
    return f"{EVENT_TYPE_PREFIX}.{kind}.{state.value}"
