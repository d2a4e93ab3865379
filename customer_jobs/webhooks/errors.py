"""Why a delivery is not taken in; the answer to either is 400."""

from customer_jobs.errors import CustomerJobsError


class InvalidSignature(CustomerJobsError):
    """Do not trust the body: it is not signed with a secret of this endpoint, or not within the tolerance."""


class InvalidEvent(CustomerJobsError):
    """Nothing was stored: the body is no event of Stripe's."""
