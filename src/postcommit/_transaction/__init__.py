"""Two-phase commit, and the events that follow it."""
