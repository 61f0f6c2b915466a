"""SMTP: the dialogue, connections, TLS and logins."""
