"""A certificate authority of the tests' own, and what it certifies: a server that is good, and one whose time is over."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)


class Authority:
    """`bundle` is the PEM file that makes it trusted. `loaded` puts one of its certificates into a server's context."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Authority of the tests")])
        signed = self._built(self._name, self._key, ends=10 * DAY).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.bundle = directory / "authority.pem"
        self.bundle.write_bytes(signed.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self._files = {name: self._issue(name, ends) for name, ends in (("good", 10 * DAY), ("expired", -DAY))}

    def _built(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, ends: dt.timedelta
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 20 * DAY)
            .not_valid_after(now + ends)
        )

    def _issue(self, name: str, ends: dt.timedelta) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = self._built(subject, key, ends).add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self._directory / f"{name}.pem"
        path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
        return path

    def loaded(self, context: ssl.SSLContext, name: str) -> ssl.SSLContext:
        """The context showing 'good' or 'expired' from its next handshake on."""
        context.load_cert_chain(self._files[name])
        return context

    def file(self, name: str) -> Path:
        """The PEM file with the key and the certificate called 'good' or 'expired'."""
        return self._files[name]
