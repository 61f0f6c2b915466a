"""How a mailer deals with its relay: time-outs, TLS, credentials."""
from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field

from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import TLSMode


@dataclass(frozen=True)
class Timeouts:
    """How long to wait, in seconds; the defaults are those of RFC 5321, 4.5.3.2."""

    connect: float = 30.0
    greeting: float = 300.0
    command: float = 300.0
    data: float = 120.0  # the reply to DATA
    block: float = 180.0  # a part of the message itself
    end: float = 600.0  # the reply to the final dot
    quit: float = 1.0  # nothing depends on it

    @classmethod
    def of(cls, connect: float, timeout: float | None) -> Timeouts:
        """The same `timeout` for each phase, or the defaults if it is None."""
        if timeout is None:
            return cls(connect)
        limit = min(timeout, cls.quit)
        return cls(connect, timeout, timeout, timeout, timeout, timeout, limit)


class TLS:
    """Whether to use TLS, and whom to trust.

    `cafile` and the system's certificates are read when first needed, and kept.
    """

    def __init__(self, mode: TLSMode, cafile: str | None, verify: bool) -> None:
        self.mode = mode
        self._cafile = cafile
        self._verify = verify
        self._contexts: dict[bool, ssl.SSLContext] = {}

    @property
    def is_required(self) -> bool:
        return self.mode in (TLSMode.STARTTLS, TLSMode.IMPLICIT)

    def context(self, *, loopback: bool) -> ssl.SSLContext:
        """Return the context towards a relay that is on `loopback`, or is not.

        Raises `RelayError` where the certificates cannot be read.
        """
        trusting = loopback and self.mode is TLSMode.AUTO
        verify = self._verify and not trusting
        context = self._contexts.get(verify)
        if context is None:
            # No lock: a child that is forked meanwhile would wait for it for ever.
            context = self._contexts.setdefault(verify, self._make(verify))
        return context

    def read_certificates(self) -> None:
        """Read the certificates now, not when the first connection needs them.

        Raises `RelayError` where they cannot be read.
        """
        if self.mode is not TLSMode.NONE:
            for loopback in (False, True):
                self.context(loopback=loopback)

    def _make(self, verify: bool) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._cafile)
        except OSError as error:
            raise RelayError(
                f"cafile={self._cafile!r} holds no certificates to trust: {error}"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True)
class Credentials:
    """Who logs in, with a password or with tokens.

    `token` is called for a fresh OAuth token, which is kept until a relay
    refuses it.
    """

    username: str
    password: str | None = field(default=None, repr=False)
    token: Callable[[], str] | None = field(default=None, repr=False)
    _kept: list[str] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        username: str | None,
        password: str | None,
        token: Callable[[], str] | None,
    ) -> Credentials | None:
        """None where there is nobody to log in.

        Raises `OptionError` where one part is missing.
        """
        if not username:
            if token is not None:
                raise OptionError("username", username, "is needed with a token")
            return None
        if password is None and token is None:
            reason = "is needed with a username (or a token)"
            raise OptionError("password", None, reason)
        if not (token is None or callable(token)):
            raise OptionError("token", token, "must be a function that returns one")
        return cls(username, password, token)

    def secret(self) -> str:
        """Return the password, or a token."""
        if self.token is None:
            return self.password or ""
        kept = self._kept[-1:]
        if not kept:
            kept = self._kept[:] = [self.token()]
        return kept[0]

    def forget(self) -> None:
        """Have the next token be a fresh one."""
        self._kept.clear()


@dataclass(frozen=True)
class Relay:
    """A relay, and how to deal with it."""

    hostname: str
    port: int
    timeouts: Timeouts
    tls: TLS
    credentials: Credentials | None = None

    def __str__(self) -> str:
        return f"{self.hostname}:{self.port}"
