"""The sandbox as one object, in a test's process or on its own; the parts it is made of do the work."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from customer_jobs.sandbox import control
from customer_jobs.sandbox.api import Api
from customer_jobs.sandbox.choosing import Faults
from customer_jobs.sandbox.customers import Json
from customer_jobs.sandbox.idempotency import IdempotencyKeys
from customer_jobs.sandbox.journal import Journal, Request
from customer_jobs.sandbox.keys import Caller, Mode
from customer_jobs.sandbox.limits import Limiter, Limits, changed
from customer_jobs.sandbox.pace import Latency, Pace
from customer_jobs.sandbox.store import Store
from customer_jobs.sandbox.webhooks import Endpoint, Webhooks
from customer_jobs.sandbox.wire import LOOPBACK, Listener

#: The account of the key `sk_test_sandbox`, which is meant when no other is named.
DEFAULT_ACCOUNT = "acct_sandbox"


class Sandbox:
    """A local Stripe on 127.0.0.1, up between `start` and `stop` or inside `with`.

    Port 0 takes a free one. Latency is in seconds, a number or (least, most). Limits are requests per second, None is
    unlimited; see `limits`. Faults are probabilities such as `500_after:0.05,reset_after:0.05`; see `faults`. The
    clock returns seconds since 1970 and may be moved by a test.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        latency_seconds: Latency = 0.0,
        rate_limit: float | None = None,
        account_rate_limit: float | None = None,
        rate_bucket_seconds: float = 1.0,
        concurrency_limit: int | None = None,
        account_concurrency_limit: int | None = None,
        faults: str = "",
        seed: int | None = None,
        webhooks: tuple[Endpoint, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        limits = Limits(
            rate_limit, account_rate_limit, rate_bucket_seconds, concurrency_limit, account_concurrency_limit
        )
        #: Rules that choose requests to fail: `add`, `clear`, `rules`.
        self.faults = Faults(faults, seed)
        #: Endpoints that are told of every change: `configure`, `deliveries`, `wait_until_idle`.
        self.webhooks = Webhooks(webhooks, seed)
        self._store = Store(clock)
        self._keys = IdempotencyKeys()
        self._limiter = Limiter(limits)
        self._journal = Journal(clock)
        self._pace = Pace(latency_seconds, seed)
        self._clock = clock
        self._wanted_port = port
        self._listener: Listener | None = None

    def start(self) -> Self:
        """Listen; the sandbox is reachable when this returns."""
        if self._listener is not None:
            raise RuntimeError("the sandbox has been started already")
        api = Api(
            store=self._store,
            keys=self._keys,
            limiter=self._limiter,
            faults=self.faults,
            journal=self._journal,
            pace=self._pace,
            clock=self._clock,
            publish=self._publish,
        )
        self._listener = Listener(self._wanted_port, api, lambda call: control.answer(self, call), self._pace)
        self._listener.start()
        return self

    def stop(self) -> None:
        """Answer nobody any more; every socket and thread is gone when this returns, what was stored is not."""
        self._pace.stop()
        if self._listener is not None:
            self._listener.stop()
        self.webhooks.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        if self._listener is None:
            raise RuntimeError("the sandbox has not been started")
        return self._listener.port

    @property
    def url(self) -> str:
        """What to give as Stripe's base address."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """Every request to /v1 so far, oldest first."""
        return self._journal.requests()

    def requests_since(self, number: int) -> list[Request]:
        """The requests after that one."""
        return self._journal.requests(number)

    def wait_until_request(
        self,
        predicate: Callable[[Request], bool] = lambda _: True,
        timeout_seconds: float = 10.0,
        count: int = 1,
    ) -> Request:
        """The count-th request that satisfies the predicate, seen already or still to come.

        A request is shown when it arrives (`status` and `finished_at` are None) and again when it is answered.

        Raises:
            TimeoutError: it did not come.
        """
        return self._journal.wait_until(predicate, timeout_seconds, count)

    def customers(self, account: str | None = None, mode: Mode | None = None) -> list[Json]:
        """The live customers, oldest first, of one account (`acct_…`) and mode, or of all."""
        found: list[Json] = []
        for owner, its_mode in self._store.accounts():
            if account in (None, owner) and mode in (None, its_mode):
                found += self._store.all_customers(owner, its_mode)
        return [dict(customer) for customer in found]

    def add_customer(
        self, customer_id: str, *, account: str = DEFAULT_ACCOUNT, mode: Mode = "test", **fields: object
    ) -> Json:
        """A customer who was there before the application, with this very id; nobody is told of it.

        Raises:
            ValueError: the id is taken.
        """
        return dict(self._store.add(account, mode, customer_id, dict(fields)))

    def update_customer(self, customer_id: str, **changes: object) -> Json:
        """The customer changed behind the application's back, as from the dashboard; fields as in its object.

        Raises:
            KeyError: nobody has it.
        """
        account, mode = self._store.find(customer_id)
        customer, event = self._store.update(account, mode, customer_id, dict(changes), NOBODY)
        self.webhooks.send(event, account)
        return customer

    def delete_customer(self, customer_id: str) -> None:
        """The customer is deleted behind the application's back, as from the dashboard.

        Raises:
            KeyError: nobody has it.
        """
        account, mode = self._store.find(customer_id)
        _, event = self._store.delete(account, mode, customer_id, NOBODY)
        self.webhooks.send(event, account)

    def send_event(
        self,
        type: str,  # noqa: A002  # the event's own word
        object: Json,  # noqa: A002
        *,
        account: str = DEFAULT_ACCOUNT,
        mode: Mode = "test",
    ) -> Json:
        """The event made by hand, which goes the way of all events."""
        event = self._store.add_event(account, mode, type, object, NOBODY)
        self.webhooks.send(event, account)
        return event

    def clear(self) -> None:
        """Forget customers, events, keys, requests, how far scripts got; rules, limits and webhooks stay."""
        self._store.clear()
        self._keys.clear()
        self._journal.clear()
        self.faults.forget_attempts()

    @property
    def limits(self) -> Limits:
        return self._limiter.limits

    def set_rate_limit(self, rate: float | None) -> None:
        """Another rate per endpoint from now on, in requests per second; buckets start full."""
        self.set_limits(rate=rate)

    def set_limits(self, **changes: float | None) -> None:
        """Other limits from now on, those of `Limits` that are named; buckets start full."""
        self._limiter.set(changed(self._limiter.limits, dict(changes)))

    def set_latency(self, latency_seconds: Latency) -> None:
        self._pace.set_latency(latency_seconds)

    def hold(self, predicate: Callable[[Request], bool] | None = None, *, after: bool = False) -> None:
        """Keep the requests that match in mid-air, before the deed or after it, until `release`.

        Their idempotency keys are in use meanwhile.
        """
        self._pace.hold(predicate, after=after)

    def wait_until_held(self, count: int = 1, timeout_seconds: float = 10.0) -> None:
        """Return once so many requests wait at the gate.

        Raises:
            TimeoutError: they did not come.
        """
        self._pace.wait_until_held(count, timeout_seconds)

    def release(self) -> None:
        """Let all that is held go on, and hold nothing any more."""
        self._pace.release()

    def _publish(self, event: Json, caller: Caller) -> None:
        self.webhooks.send(event, caller.acting_for, connected=caller.acting_for != caller.account)


#: The `request` of an event that no API request caused.
NOBODY: Json = {"id": None, "idempotency_key": None}
