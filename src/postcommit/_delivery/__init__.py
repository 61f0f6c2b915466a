"""Direct and queued delivery: an application looks one up and calls its `send`."""
