"""Keys and certificates between the parts of the local SeaweedFS server, which serve on ports that all users reach.

S3 asks for the user's keys. Without these, the other parts ask for nothing: whoever is on the machine could read,
replace and delete objects there. So requests to volumes need a token that is signed with a key of this start, and the
parts know one another by a certificate of this start; HTTP to the others is off. Nobody needs either afterwards.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from pathlib import Path

_SIGNED = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")

_PARTS = ("master", "volume", "filer", "s3", "client", "admin", "worker", "msg_broker", "msg_agent")

FILE, CERTIFICATE, KEY = "security.toml", "server.crt", "server.key"
"""Files in the folder where SeaweedFS is started; FILE is the name that it looks for."""

DAYS = 3650
"""Days until the certificate ends; a server may run as long as a cluster on this machine."""


def security_files(folder: Path) -> dict[str, str]:
    """Content by name of the files for a start in `folder`, which only its owner may read."""
    certificate, key = own_certificate("manta-local-s3", "127.0.0.1")
    sections = [f'[{name}]\nkey = "{secrets.token_hex(32)}"\n' for name in _SIGNED]
    sections += [f'[grpc]\nca = "{folder / CERTIFICATE}"\n']
    sections += [f'[grpc.{part}]\ncert = "{folder / CERTIFICATE}"\nkey = "{folder / KEY}"\n' for part in _PARTS]
    return {CERTIFICATE: certificate, KEY: key, FILE: "\n".join(sections)}


def own_certificate(name: str, address: str) -> tuple[str, str]:
    """A certificate that is its own authority, for servers at an IP address and for their clients; and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks are set back
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem).decode(), private.decode()
