"""A certificate authority for tests, what it signs, and what it revokes."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass
class Authority:
    """Its certificate is `<name>.crt` in the folder."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey = field(init=False)

    def __post_init__(self) -> None:
        """Sign its own certificate."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._write(self.name, self.key, authority=True)

    def sign(self, name: str, password: str = "", *names: str) -> x509.Certificate:
        """Write `<name>.crt` for a server with these names, and its `<name>.key`."""
        key = ec.generate_private_key(ec.SECP256R1())
        lock = serialization.BestAvailableEncryption(password.encode()) if password else None
        file = self.folder / f"{name}.key"
        file.touch(mode=0o600)
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                lock or serialization.NoEncryption(),
            )
        )
        return self._write(name, key, *names)

    def revoke(self, name: str, *certificates: x509.Certificate) -> Path:
        """Write a list of what is not to be trusted any more."""
        revoked = x509.CertificateRevocationListBuilder().issuer_name(_named(self.name))
        revoked = revoked.last_update(NOW - DAY).next_update(NOW + DAY)
        for certificate in certificates:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            revoked = revoked.add_revoked_certificate(entry.revocation_date(NOW - DAY).build())
        file = self.folder / f"{name}.crl"
        file.write_bytes(
            revoked.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return file

    def _write(
        self, name: str, key: ec.EllipticCurvePrivateKey, *names: str, authority: bool = False
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            _named(self.name),
            _named(name),
            key.public_key(),
            x509.random_serial_number(),
            NOW - DAY,
            NOW + DAY,
        ).add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        if names:
            known = [
                x509.IPAddress(ip_address(it)) if it[0].isdigit() else x509.DNSName(it)
                for it in names
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(known), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        (self.folder / f"{name}.crt").write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
        )
        return certificate
