"""A private authority and the certificates that it signs: for the broker, and for the server as its client.

They need the package `cryptography` (the extra `tls`), which nothing else here does: it is imported late. What is
there and good is kept. The authority itself is never replaced, unless that is asked for: every phone trusts it.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sigma9_core.errors import Sigma9Error, StateError
from sigma9_integrations.broker.files import write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CA: Final = "ca"
SERVER: Final = "server"
CLIENT: Final = "sigma9"
"""The client certificate's file, and the role that it stands for: its common name is the login."""

DAYS: Final = 825
"""How long a certificate holds: phones of Apple accept no more."""
CA_DAYS: Final = 3650
SOON: Final = timedelta(days=30)
"""A certificate that ends sooner is made anew."""
HERE: Final = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that every server certificate has."""


class CertificateError(Sigma9Error):
    """Certificates can't be made: the sentence says what is missing."""


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one certificate."""

    name: str
    """The file, such as `server.crt`."""
    what: str
    """`made`, `renewed` or `kept`, and why."""
    ends: datetime
    names: tuple[str, ...] = ()
    """The names and addresses that it is for."""


@dataclass(frozen=True, slots=True)
class _Pair:
    cert: x509.Certificate
    key: EllipticCurvePrivateKey | None


def require() -> None:
    """Raise CertificateError where the package is missing."""
    if importlib.util.find_spec("cryptography") is None:
        raise CertificateError(
            "certificates are made with the package cryptography, which is not installed: "
            f"{sys.executable} -m pip install 'sigma9[tls]', then run this again"
        )


def names_of(hosts: Sequence[str]) -> tuple[str, ...]:
    """Give the names of the server certificate: those given, and this machine's own; raise CertificateError."""
    own = socket.gethostname()
    names = [_name(host) for host in hosts]
    try:
        names.append(_name(own))
    except CertificateError:
        pass  # a machine may be called what no certificate can say
    return tuple(dict.fromkeys((*names, *HERE)))


def make(folder: Path, hosts: Sequence[str], days: int = DAYS, *, force: bool = False) -> list[Made]:
    """Make what is missing in `folder`, renew what ends soon, keep the rest; say what was done with each.

    Raise CertificateError, or StateError where a file that is there can't be read.
    """
    require()
    now = datetime.now(UTC)
    ca, made = _authority(folder, now, force=force)
    names = names_of(hosts)
    listed = [made]
    for name in (SERVER, CLIENT):
        wanted = names if name == SERVER else ()
        listed.append(_signed(folder, name, wanted, ca, now + timedelta(days=days)))
    return listed


def names_in(cert: x509.Certificate) -> tuple[str, ...]:
    """List the names and addresses that a certificate is for."""
    from cryptography import x509

    try:
        found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = map(str, found.get_values_for_type(x509.IPAddress))
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def _authority(folder: Path, now: datetime, *, force: bool) -> tuple[_Pair, Made]:
    found = None if force else _read(folder, CA)
    if found is None:
        left = [name for name in (f"{CA}.key", f"{SERVER}.crt", f"{CLIENT}.crt") if (folder / name).exists()]
        if left and not force:
            raise StateError(
                f"{folder / left[0]} is there, but not the authority's certificate {CA}.crt: bring that back, or "
                "make a new authority with --force"
            )
        made = _new_authority(folder, now)
        return made, Made(f"{CA}.crt", "made", made.cert.not_valid_after_utc)
    ends = found.cert.not_valid_after_utc
    if ends - now < SOON:
        raise CertificateError(
            f"the authority {folder / f'{CA}.crt'} ends on {ends:%Y-%m-%d}: make a new one with --force, and "
            "bring the new ca.crt to every client"
        )
    return found, Made(f"{CA}.crt", "kept", ends)


def _signed(folder: Path, name: str, names: Sequence[str], ca: _Pair, ends: datetime) -> Made:
    now = datetime.now(UTC)
    file = f"{name}.crt"
    found = _read(folder, name)
    if found is None:
        why = "made"
    elif found.key is None:
        why = "made anew: its key was missing or another one's"
    elif not _is_from(found.cert, ca.cert):
        why = "made anew: another authority had signed it"
    elif found.cert.not_valid_after_utc - now < SOON:
        why = f"renewed: it ended on {found.cert.not_valid_after_utc:%Y-%m-%d}"
    elif missing := [each for each in names if each not in names_in(found.cert)]:
        why = f"made anew: for {', '.join(missing)} as well"
        names = tuple(dict.fromkeys((*names, *names_in(found.cert))))
    else:
        return Made(file, "kept", found.cert.not_valid_after_utc, names_in(found.cert))
    if found is not None and "renewed" in why:
        names = tuple(dict.fromkeys((*names, *names_in(found.cert))))
    if ca.key is None:
        raise CertificateError(
            f"{file} has to be {why.partition(':')[0]}, and {folder / f'{CA}.key'} is not there: put the "
            "authority's key back for this, or make a new authority with --force"
        )
    made = _new_signed(folder, name, names, ca, min(ends, ca.cert.not_valid_after_utc))
    return Made(file, why, made.cert.not_valid_after_utc, names_in(made.cert))


def _new_authority(folder: Path, now: datetime) -> _Pair:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    title = f"Sigma9 broker authority {serial % 0xFFFFFF:06x}"  # two of them must not have one name
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, title)])
    builder = (
        x509.CertificateBuilder()
        .serial_number(serial)
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _sign(folder, CA, builder, key, key)


def _new_signed(folder: Path, name: str, names: Sequence[str], ca: _Pair, ends: datetime) -> _Pair:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    assert ca.key is not None  # noqa: S101 - the caller has looked
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
    title = name if not names else "Sigma9 broker"
    builder = (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, title)]))
        .issuer_name(ca.cert.subject)
        .public_key(key.public_key())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([_general(each) for each in names])
        builder = builder.add_extension(alternatives, critical=False)
    return _sign(folder, name, builder, key, ca.key)


def _sign(
    folder: Path,
    name: str,
    builder: x509.CertificateBuilder,
    key: EllipticCurvePrivateKey,
    signer: EllipticCurvePrivateKey,
) -> _Pair:
    """Sign, and write the key before its certificate: a crash between leaves two that are told apart."""
    from cryptography.hazmat.primitives import hashes, serialization

    cert = builder.sign(signer, hashes.SHA256())
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(folder / f"{name}.key", text.decode())
    path = folder / f"{name}.crt"
    write_private(path, cert.public_bytes(serialization.Encoding.PEM).decode())
    path.chmod(0o644)  # a certificate is no secret
    return _Pair(cert, key)


def _read(folder: Path, name: str) -> _Pair | None:
    """Read a certificate with its key; None where there is no certificate, no key where it is another one's."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = folder / f"{name}.crt"
    key_path = folder / f"{name}.key"
    try:
        cert = x509.load_pem_x509_certificate(path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), None) if key_path.exists() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StateError(
            f"{path} or its key can't be read ({error}): bring it back from a copy, or delete both"
        ) from error
    fits = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == cert.public_key()
    return _Pair(cert, key if fits and isinstance(key, ec.EllipticCurvePrivateKey) else None)


def _is_from(cert: x509.Certificate, ca: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        cert.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _usage(*, ca: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(host: str) -> str:
    """Write a host as a certificate has it; raise CertificateError where it is none."""
    text = host.strip().strip("[]")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        plain = text.lower().encode("idna").decode() if text else ""
    except UnicodeError:
        plain = ""
    if not plain or len(plain) > 253 or not all(sign.isalnum() or sign in "-._" for sign in plain):
        raise CertificateError(f"'{host}' is no name or address of a machine: write --host trader.lan")
    return plain
