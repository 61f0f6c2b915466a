"""An example of each option, as a text, and the value that it means."""
from __future__ import annotations


SMTP = {
    "hostname": ("relay.example.org", "relay.example.org"),
    "port": ("587", 587),
    "username": ("me", "me"),
    "password": ("secret", "secret"),
    "tls": ("starttls", "starttls"),
    "cafile": ("/etc/ca.pem", "/etc/ca.pem"),
    "verify": ("off", False),
    "connect_timeout": ("5", 5.0),
    "timeout": ("10.5", 10.5),
    "messages_per_connection": ("7", 7),
    "idle_timeout": ("0", 0.0),
    "pipelining": ("n", False),
}

PROCESSOR = {
    "pollingInterval": ("3000", 3000),
    "workers": ("2", 2),
    "rate_limit": ("10", 10.0),
    "min_backoff": ("30", 30.0),
    "max_backoff": ("3000", 3000.0),
    "max_age": ("86400", 86400.0),
    "max_uncertain": ("5", 5),
}
