"""What becomes of one request to /v1: who asks, may they, which fault, done before, the deed, the answer.

The order is Stripe's as far as it is documented: authentication, permissions, limits, idempotency, parameters, deed.
Nothing here touches a socket.
"""

import hashlib
import json
import time
from collections.abc import Callable

from customer_jobs.sandbox.answers import Answer, answer_headers, dump, refused, replayed
from customer_jobs.sandbox.calls import CHECKS, PERMISSIONS, Call, Work, route, understand
from customer_jobs.sandbox.checks import checked
from customer_jobs.sandbox.choosing import Faults, script_of
from customer_jobs.sandbox.customers import Json, deleted_customer, new_id
from customer_jobs.sandbox.deeds import do
from customer_jobs.sandbox.faults import Fault, UnknownFaultError
from customer_jobs.sandbox.forms import Params
from customer_jobs.sandbox.idempotency import IdempotencyKeys, Saved
from customer_jobs.sandbox.journal import Journal
from customer_jobs.sandbox.keys import Caller, bearer, identify, lacks_permission, mask
from customer_jobs.sandbox.limits import Limiter
from customer_jobs.sandbox.pace import Pace
from customer_jobs.sandbox.refusals import Refusal, rate_limited, server_error, unrecognized_url
from customer_jobs.sandbox.spoiling import instead, spoiled
from customer_jobs.sandbox.store import Store


class Api:
    """Stripe's customers endpoint over a store."""

    def __init__(
        self,
        *,
        store: Store,
        keys: IdempotencyKeys,
        limiter: Limiter,
        faults: Faults,
        journal: Journal,
        pace: Pace,
        clock: Callable[[], float],
        publish: Callable[[Json, Caller], None],
    ) -> None:
        self._store = store
        self._keys = keys
        self._limiter = limiter
        self._faults = faults
        self._journal = journal
        self._pace = pace
        self._clock = clock
        self._publish = publish

    def handle(self, call: Call) -> Answer:
        """The answer, logged before it is returned."""
        headers = call.headers
        request_id = new_id("req_")
        endpoint, item_id = route(call.method, call.path)
        key = bearer(headers.get("authorization"))
        params: Params = {}
        caller: Caller | None = None
        complaint: Refusal | None = None
        try:
            caller = identify(key, headers.get("stripe-account"))
            params = understand(call)
        except Refusal as refusal:
            complaint = refusal
        request = self._journal.begin(
            method=call.method,
            path=call.path,
            endpoint=endpoint,
            params=params,
            key=mask(key) if key else "",
            mode=caller.mode if caller else "",
            account=caller.acting_for if caller else "",
            stripe_account=headers.get("stripe-account"),
            idempotency_key=headers.get("idempotency-key") if call.method == "POST" else None,
            stripe_version=headers.get("stripe-version"),
            request_id=request_id,
        )
        fault: Fault | None = None
        if complaint is not None or caller is None or endpoint is None:
            answer = refused(complaint or unrecognized_url(call.method, call.path), request)
        else:
            fingerprint = hashlib.blake2b(json.dumps(params, sort_keys=True).encode(), digest_size=16).digest()
            answer, fault = self._answer(Work(request, endpoint, item_id, params, caller, fingerprint))
        self._journal.finish(
            request,
            None if answer.wire in ("reset", "close", "hang") else answer.status,
            error_code=answer.error_code,
            rate_limited_reason=answer.rate_limited_reason,
            replayed=answer.original_request is not None,
            fault=fault.name if fault else None,
        )
        answer.headers = answer_headers(request, answer)
        return answer

    def _answer(self, work: Work) -> tuple[Answer, Fault | None]:
        restriction, permission = PERMISSIONS[work.endpoint]
        if restriction in work.caller.denied:
            return refused(lacks_permission(work.caller, permission), work.request), None
        limited_as = f"{work.caller.acting_for} {work.caller.mode}"
        reason = self._limiter.admit(limited_as, work.endpoint, time.monotonic())
        if reason is not None:
            return refused(rate_limited(reason), work.request), None
        try:
            try:
                fault = self._choose(work)
            except UnknownFaultError as error:
                refusal = Refusal(400, str(error), code="parameter_invalid", param="metadata[sandbox]")
                return refused(refusal, work.request), None
            if fault is not None and fault.moment == "refuse":
                return self._instead(work, fault), fault
            answer = self._once(work, fault)
            if fault is not None and fault.moment == "lose":
                answer = self._spoiled(work, answer, fault)
            return answer, fault
        finally:
            self._limiter.leave(limited_as, work.endpoint)

    def _choose(self, work: Work) -> Fault | None:
        request = work.request
        script = script_of(work.params, work.item_id if work.endpoint == "retrieve" else None)
        if request.method != "POST" and work.endpoint != "retrieve":
            script = None
        attempts_of = (work.world, request.path, request.idempotency_key or work.fingerprint)
        return self._faults.choose(request.method, request.path, work.caller.acting_for, script, attempts_of)

    def _instead(self, work: Work, fault: Fault) -> Answer:
        if fault.body == "deleted":
            return Answer(200, dump(deleted_customer(work.item_id)))
        if fault.body == "error":
            return refused(instead(fault, work.caller, work.item_id, work.request.idempotency_key), work.request)
        return self._spoiled(work, Answer(0, b""), fault)

    def _spoiled(self, work: Work, answer: Answer, fault: Fault) -> Answer:
        if fault.body == "error":
            return refused(server_error(fault.status), work.request)
        if fault.body == "true":
            answer.wire, answer.wire_seconds = fault.wire, fault.seconds
            return answer
        content_type, body = spoiled(fault, answer.body)
        return Answer(fault.status, body, content_type)

    def _once(self, work: Work, fault: Fault | None) -> Answer:
        """The answer that the idempotency key brings back, or that of the deed."""
        key = work.request.idempotency_key
        if not key:
            try:
                return self._perform(work, fault)
            except Refusal as refusal:
                return refused(refusal, work.request)
        try:
            saved = self._keys.begin(work.world, key, work.request.path, work.fingerprint, self._clock())
        except Refusal as refusal:
            return refused(refusal, work.request)
        if saved is not None:
            return replayed(saved)
        remembered = False
        try:
            try:
                answer = self._perform(work, fault)
                remembered = True
            except Refusal as refusal:
                answer = refused(refusal, work.request)
                remembered = refusal.saved
            if remembered:
                self._keys.save(work.world, key, Saved(answer.status, answer.body, work.request.request_id))
            return answer
        finally:
            if not remembered:
                self._keys.abandon(work.world, key)

    def _perform(self, work: Work, fault: Fault | None) -> Answer:
        moment = fault.moment if fault else "pass"
        extra_seconds = fault.seconds if fault and moment == "pass" else 0.0
        params = checked(work.params, CHECKS[work.endpoint])
        self._pace.before_deed(work.request, extra_seconds)
        if moment != "freeze":
            answer = Answer(200, dump(do(work, params, self._store, self._publish)))
        self._pace.after_deed(work.request)
        if moment in ("freeze", "freeze_after"):
            answer = refused(server_error(500), work.request)
            answer.should_retry = False
        return answer
