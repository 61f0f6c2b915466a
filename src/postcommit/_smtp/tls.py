"""TLS towards a relay: whether to speak it, and which certificates to trust.

Files are read when the first connection needs them, and again when they have changed:
certificates are renewed every few weeks, and an application gets no notice.
"""
from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import NamedTuple
from typing import TypeAlias

from postcommit._log import Log
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import TLSMode


log = Log("postcommit.smtp")

# Time, size, device and inode of a file: one of them changes when it is replaced. None
# if it is missing.
_Stamp: TypeAlias = tuple[int, int, int, int] | None

# OpenSSL's codes for certificates that only VERIFY_X509_STRICT refuses, which is the
# default since Python 3.13 (x509_vfy.h).
_STRICT = range(80, 94)

_WRONG_NAME = (62, 64)  # of a host, of an address
_WRONG_TIME = (9, 10)  # not yet valid, expired

# OpenSSL's names for alerts about the client's certificate (RFC 8446, 6.2).
_ABOUT_CLIENT = re.compile("ALERT_.*(?:CERTIFICATE|UNKNOWN_CA)")

# Relays for which the log already says that their certificate is not verified, or that
# mail goes out in clear, each with the reason.
_logged: set[tuple[str, str]] = set()


class _Kept(NamedTuple):
    """A context, and the state of its files when they were read."""

    context: ssl.SSLContext
    stamps: tuple[_Stamp, ...]
    is_doubtful: bool = False


# The options that do nothing without TLS.
NEED_TLS = "cafile", "server_name", "certfile", "ssl_context"


@dataclass(frozen=True)
class TLS:
    """Whether to use TLS, whom to trust, and which certificate to show.

    `ssl_context` is a context of the caller, used as it is.
    """

    mode: TLSMode
    cafile: str | None = None
    verify: bool = True
    certfile: str | None = None
    keyfile: str | None = None
    server_name: str | None = None
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    _kept: dict[bool, _Kept] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def check(self, clear: str = "tls='none'") -> None:
        """Raise `OptionError` for options that contradict each other.

        `clear` says which option has chosen a connection without TLS.
        """
        _check_context(self.ssl_context)
        _check_name(self.server_name)
        files = {
            "cafile": self.cafile,
            "certfile": self.certfile,
            "keyfile": self.keyfile,
        }
        others = {"server_name": self.server_name, "ssl_context": self.ssl_context}
        if self.mode is TLSMode.NONE:
            _refuse({**files, **others}, f"has no effect with {clear}")
        if self.ssl_context is not None:
            _refuse(files, "has no effect with an ssl_context; load it into that")
            if not self.verify:
                reason = "has no effect with an ssl_context; set its verify_mode"
                raise OptionError("verify", self.verify, reason)
        if self.certfile is None:
            _refuse({"keyfile": self.keyfile}, "has no effect without certfile")

    @property
    def shows_certificate(self) -> bool:
        """Whether a relay that asks for the client's certificate may get one."""
        return self.certfile is not None or self.ssl_context is not None

    def verifies(self, *, loopback: bool, login: bool) -> bool:
        """Return whether a relay must prove who it is.

        With ``auto``, this is for a `login` that is not to `loopback`. Without a login
        nothing secret is sent, and the mail would go out in clear if the relay did not
        offer STARTTLS. If `cafile` or `server_name` is given, the relay must prove it
        in any case.
        """
        if self.mode is not TLSMode.AUTO or self.cafile or self.server_name:
            return self.verify
        return self.verify and login and not loopback

    def context(self, *, loopback: bool, login: bool) -> ssl.SSLContext:
        """Return the context for a connection to `loopback` or not, with a `login`.

        The files are read again if they have changed. If that fails, what was read
        before is kept, and a warning is logged. Raises `RelayError` if nothing was read
        before.
        """
        if self.ssl_context is not None:
            return self.ssl_context
        return self._current(self.verifies(loopback=loopback, login=login))

    def read_certificates(self) -> None:
        """Read the certificates now, not when the first connection needs them.

        Raises `RelayError` if they cannot be read.
        """
        if self.mode is not TLSMode.NONE and self.ssl_context is None:
            for login in (False, True):
                self._current(self.verifies(loopback=False, login=login))

    def read_again(self) -> None:
        """Read all files again for the next connection, because a handshake failed.

        The files may have been replaced by others of the same time and size. The
        system's certificates are read again, too.
        """
        for verify, kept in list(self._kept.items()):
            self._kept[verify] = kept._replace(is_doubtful=True)

    def log_unverified(self, relay: str, context: ssl.SSLContext) -> None:
        """Log once for each relay that its certificate is not verified with `context`.

        `relay` is its name.
        """
        if context.verify_mode is not ssl.CERT_NONE:
            return
        reason = "verify=False" if not self.verify else "tls='auto' without a login"
        if self.ssl_context is not None:
            reason = "as the ssl_context has it"
        _log_once(relay, f"the relay's certificate is not verified: {reason}")

    def log_clear(self, relay: str) -> None:
        """Log once for each relay that mail goes to it in clear."""
        is_off = self.mode is TLSMode.NONE
        reason = "tls='none'" if is_off else "tls='auto', and it offers no STARTTLS"
        _log_once(relay, f"mail goes out in clear: {reason}")

    def _current(self, verify: bool) -> ssl.SSLContext:
        """Return the context of the files as they are now."""
        kept = self._kept.get(verify)
        stamps = tuple(map(_stamp, self._files(verify)))
        is_same = kept is not None and kept.stamps == stamps
        if kept is not None and is_same and not kept.is_doubtful:
            return kept.context
        try:
            made = _Kept(self._make(verify), stamps)
        except RelayError as error:
            if kept is None:
                raise
            if not is_same:  # otherwise it was logged before
                told = "%s; the certificates that were read before are used"
                log.warning(told, error)
            made = kept._replace(stamps=stamps, is_doubtful=False)
        # No lock: a child that is forked at this moment would never get it.
        if self._kept.get(verify) is kept:
            self._kept[verify] = made
        return self._kept[verify].context

    def _files(self, verify: bool) -> list[str]:
        files = (self.cafile if verify else None, self.certfile, self.keyfile)
        return [path for path in files if path is not None]

    def _make(self, verify: bool) -> ssl.SSLContext:
        if verify:
            try:
                context = ssl.create_default_context(cafile=self.cafile)
            except OSError as error:
                raise RelayError(
                    f"cafile={self.cafile!r} holds no certificates to trust: {error}"
                ) from error
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certfile is not None:
            _load_pair(context, self.certfile, self.keyfile)
        return context


def _log_once(relay: str, text: str) -> None:
    if (relay, text) not in _logged:
        _logged.add((relay, text))
        log.info("%s: %s", relay, text)


def _check_context(context: object) -> None:
    if context is None:
        return
    if not isinstance(context, ssl.SSLContext):
        raise OptionError("ssl_context", context, "must be an ssl.SSLContext")
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise OptionError("ssl_context", context, "must be a context for clients")


def _check_name(name: str | None) -> None:
    try:
        is_good = name is None or bool(name.rstrip(".").encode("idna"))
    except UnicodeError:
        is_good = False
    if not is_good:
        raise OptionError("server_name", name, "cannot be the name of a host")


def _refuse(options: Mapping[str, object], reason: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise OptionError(name, value, reason)


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_dev, found.st_ino


# The client's certificate


def _load_pair(context: ssl.SSLContext, certfile: str, keyfile: str | None) -> None:
    """Load a client's certificate and its key. Raises `RelayError`, naming the option.

    OpenSSL's own errors do not say which of the two files is meant.
    """
    _look_for(b"CERTIFICATE-----", "certfile", certfile, "a certificate")
    name, path = ("keyfile", keyfile) if keyfile else ("certfile", certfile)
    _look_for(b"PRIVATE KEY-----", name, path, "a private key")
    try:
        context.load_cert_chain(certfile, keyfile, password=_no_passphrase)
    except _PassphraseNeeded:
        reason = "is protected by a passphrase; write it without one, for its owner"
        failure = RelayError(f"the key in {name}={path!r} {reason} only to read")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"does not belong to the certificate in certfile={certfile!r}"
        else:
            reason = f"cannot be used with certfile={certfile!r}: {error}"
        failure = RelayError(f"the key in {name}={path!r} {reason}")
    else:
        return
    raise failure


def _look_for(marker: bytes, name: str, path: str, what: str) -> None:
    try:
        with open(path, "rb") as file:
            found = marker in file.read()
    except OSError as error:
        raise RelayError(f"{name}={path!r} cannot be read: {error.strerror}") from error
    if not found:
        raise RelayError(f"{name}={path!r} does not hold {what} in PEM format")


class _PassphraseNeeded(Exception):
    """OpenSSL has asked for a passphrase."""


def _no_passphrase() -> str:
    """Raise an error. Without this function, OpenSSL would ask on the terminal."""
    raise _PassphraseNeeded


# Failures


def remedy(error: ssl.SSLCertVerificationError) -> str:
    """Return what to do about a relay's certificate that was not accepted."""
    if error.verify_code in _WRONG_NAME:
        return "set hostname, or server_name, to a name in the certificate"
    if error.verify_code in _WRONG_TIME:
        return "the relay needs a new certificate, or the clock of this host is wrong"
    if error.verify_code in _STRICT:
        return (
            "the certificate or its authority's is not as RFC 5280 has it, and must be"
            " issued again; or give an ssl_context without ssl.VERIFY_X509_STRICT"
        )
    return "set cafile to the certificate of its authority"


def about_client(error: Exception, *, shown: bool) -> str:
    """Return what to do about the client's certificate, empty if that is not the cause.

    `shown` is whether the client has a certificate. Under TLS 1.3 the client regards
    the handshake as finished before the relay says that it misses one (RFC 8446,
    4.4.2.4).
    """
    reason = getattr(error, "reason", None) or ""
    if _ABOUT_CLIENT.search(reason):
        if shown:
            return "; the relay does not accept the client certificate (certfile)"
        return "; the relay wants a client certificate: set certfile"
    is_closed = isinstance(error, ConnectionError | ssl.SSLEOFError)
    if not shown and (is_closed or "ALERT_HANDSHAKE_FAILURE" in reason):
        return "; if the relay wants a client certificate, set certfile"
    return ""
