"""No models: the tables are those of `customer_jobs.schema`. Django tells only an app with this module of `migrate`."""
