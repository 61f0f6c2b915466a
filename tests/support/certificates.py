"""Certificates for tests, good ones and bad ones, made by trustme."""
from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import trustme


class Authority:
    """A private authority; `cafile` is its certificate in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.cafile = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.cafile)

    def write_chain(self, path: Path, *names: str, expired: bool = False) -> None:
        """Write key and certificates of a server that may call itself `names`."""
        issued = self._issue(*names, expired=expired)
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))

    def server(self, *names: str, expired: bool = False) -> ssl.SSLContext:
        """Return the context of a server that may call itself `names`."""
        certificate = self._issue(
            *names or ("127.0.0.1", "localhost"), expired=expired
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context

    def _issue(self, *names: str, expired: bool) -> trustme.LeafCert:
        past = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
        return self.ca.issue_cert(
            *names,
            not_before=past if expired else None,
            not_after=past + datetime.timedelta(days=1) if expired else None,
        )
