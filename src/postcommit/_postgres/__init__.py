"""The queue in PostgreSQL: entries are rows, and claims are leases."""
