"""Draining a queue: workers, settling, the circuit breaker, the schedule."""
