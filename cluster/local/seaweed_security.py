"""Keys and certificates between the parts of the local SeaweedFS server, which serve on ports that all users reach.

S3 asks for the user's keys. Without these, the other parts ask for nothing: whoever is on the machine could read,
replace and delete objects there. So requests to volumes need a token that is signed with a key of this start, and the
parts know one another by a certificate of this start; HTTP to the others is off. Nobody needs either afterwards.
"""

from __future__ import annotations

import datetime
import secrets
from pathlib import Path

_SIGNED = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")

_PARTS = ("master", "volume", "filer", "s3", "client", "admin", "worker", "msg_broker", "msg_agent")

FILE, CERTIFICATE, KEY = "security.toml", "server.crt", "server.key"
"""Files in the folder where SeaweedFS is started; FILE is the name that it looks for."""

DAYS = 3650
"""Days until the certificate ends; a server may run as long as a cluster on this machine."""


def write_security(folder: Path) -> None:
    """Writes the configuration for a start in `folder`, which only its owner may read."""
    certificate, key = _certificate()
    sections = [f'[{name}]\nkey = "{secrets.token_hex(32)}"\n' for name in _SIGNED]
    sections += [f'[grpc]\nca = "{folder / CERTIFICATE}"\n']
    sections += [f'[grpc.{part}]\ncert = "{folder / CERTIFICATE}"\nkey = "{folder / KEY}"\n' for part in _PARTS]
    for name, content in {CERTIFICATE: certificate, KEY: key, FILE: "\n".join(sections).encode()}.items():
        path = folder / name
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(content)


def _certificate() -> tuple[bytes, bytes]:
    """A certificate that is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "manta-local-s3")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks are set back
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), private
