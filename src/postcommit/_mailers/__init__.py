"""The mailers besides SMTP, and the adapter for those written elsewhere."""
