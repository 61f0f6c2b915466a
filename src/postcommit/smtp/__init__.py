"""The SMTP client: replies, policy, sessions, pool and mailer."""
