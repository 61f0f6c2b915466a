"""Messages and their envelopes: from what an application sends to bytes."""
