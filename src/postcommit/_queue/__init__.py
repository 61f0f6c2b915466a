"""A queue for support pages, scripts and commands: `MailQueue` and what it shows."""
