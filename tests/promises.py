"""How soon things happen, in seconds, as the documents promise it; tests and measurements hold it against what is."""

TAKEN_OVER_SECONDS = 20.0  #: The jobs of a killed worker run elsewhere.
REPLACED_SECONDS = 12.0  #: Another leads.
UNAVAILABLE_SECONDS = 5.0  #: Who enqueues without a database is told so.
HEALTH_SECONDS = 5.0  #: `customer-jobs health` answers, whatever hangs.
BACK_SECONDS = 5.0  #: Jobs run once Redis or PostgreSQL is back; the documents say: within seconds.
HALF_OPEN_SECONDS = 35.0  #: Jobs run though a worker's connections fell silent; measured, and promised nowhere.
