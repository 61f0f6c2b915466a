"""Certificates for tests, good ones and bad ones, made by trustme."""
from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


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

    def strict_server(self) -> ssl.SSLContext:
        """Return the context of a server that wants a certificate of this authority."""
        context = self.server()
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.cafile)
        return context

    def write_pair(self, folder: Path, passphrase: str = "") -> tuple[str, str]:
        """Write certificate and key of a client into `folder`, and return the paths."""
        issued = self.ca.issue_cert("client@example.org")
        cert, key = folder / "client.pem", folder / "client.key"
        issued.cert_chain_pems[0].write_to_path(str(cert))
        key.write_bytes(issued.private_key_pem.bytes())
        if passphrase:
            secret = serialization.load_pem_private_key(key.read_bytes(), None)
            key.write_bytes(
                secret.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.BestAvailableEncryption(passphrase.encode()),
                )
            )
        return str(cert), str(key)

    def lax_server(self, folder: Path) -> ssl.SSLContext:
        """Return the context of a server that only VERIFY_X509_STRICT refuses.

        Its certificate does not name the key of the authority (RFC 5280, 4.2.1.1).
        """
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lax")])
        made = (
            x509.CertificateBuilder(issuer.subject, subject, key.public_key(), 1)
            .not_valid_before(issuer.not_valid_before_utc)
            .not_valid_after(issuer.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        )
        secret = serialization.load_pem_private_key(
            self.ca.private_key_pem.bytes(), None
        )
        assert isinstance(secret, ec.EllipticCurvePrivateKey)
        signed = made.sign(secret, hashes.SHA256())
        path = folder / "lax.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + signed.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _issue(self, *names: str, expired: bool) -> trustme.LeafCert:
        past = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
        return self.ca.issue_cert(
            *names,
            not_before=past if expired else None,
            not_after=past + datetime.timedelta(days=1) if expired else None,
        )

