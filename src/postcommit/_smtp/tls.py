"""TLS towards a relay: whether to speak it, and which certificates to trust."""
from __future__ import annotations

import ssl
from dataclasses import dataclass
from dataclasses import field

from postcommit.errors import RelayError
from postcommit.interfaces import TLSMode


@dataclass(frozen=True)
class TLS:
    """Whether to use TLS, and whom to trust.

    `cafile` and the system's certificates are read when first needed, and kept.
    """

    mode: TLSMode
    cafile: str | None = None
    verify: bool = True
    certfile: str | None = None
    keyfile: str | None = None
    server_name: str | None = None
    given: ssl.SSLContext | None = field(default=None, repr=False)
    _contexts: dict[bool, ssl.SSLContext] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def context(self, *, loopback: bool) -> ssl.SSLContext:
        """Return the context for a relay that is on `loopback`, or is not.

        Raises `RelayError` if the certificates cannot be read.
        """
        trusting = loopback and self.mode is TLSMode.AUTO
        verify = self.verify and not trusting
        context = self._contexts.get(verify)
        if context is None:
            # No lock: a child that is forked at this moment would never get it.
            context = self._contexts.setdefault(verify, self._make(verify))
        return context

    def read_certificates(self) -> None:
        """Read the certificates now, not when the first connection needs them.

        Raises `RelayError` if they cannot be read.
        """
        if self.mode is not TLSMode.NONE:
            for loopback in (False, True):
                self.context(loopback=loopback)

    def _make(self, verify: bool) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.cafile)
        except OSError as error:
            raise RelayError(
                f"cafile={self.cafile!r} holds no certificates to trust: {error}"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
