"""TLS of a server: its certificate is read again when it changes, while it serves."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from smoa.access.settings import CallersSettings
from smoa.access.watched import Watched
from smoa.errors import FailedPrecondition, InvalidArgument

_VARIABLES: Final = ("SMOA_TLS_CERTIFICATE", "SMOA_TLS_KEY", "SMOA_TLS_CLIENT_CA")


class ServerTls:
    """The files of a server's certificate, its key and, with `client_ca`, who must have signed its callers'."""

    def __init__(self, certificate: str, key: str, client_ca: str = "") -> None:
        """Read them.

        Raises:
            InvalidArgument: a certificate without a key, or a file that holds no such thing.
            FailedPrecondition: a file that cannot be read, or a key of another certificate.
        """
        if not certificate or not key:
            missing = _VARIABLES[0] if not certificate else _VARIABLES[1]
            raise InvalidArgument(missing, "is empty", "TLS needs a certificate and its key; name both files")
        self._files = [Path(one) for one in (certificate, key, client_ca) if one]
        self._said = Watched(self._files, self._read)
        self._given = self._said.now()
        self._latest: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: CallersSettings) -> ServerTls | None:
        """As the settings say; None for a port in the clear.

        Raises:
            InvalidArgument, FailedPrecondition: as the constructor.
        """
        if not (settings.tls_certificate or settings.tls_key or settings.tls_client_ca):
            return None
        return cls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)

    def context(self) -> ssl.SSLContext:
        """For a port of asyncio's. Each handshake is with the certificate of the moment; who signs callers' is read once."""
        context = self._context()

        def handshake(connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
            if self._changed() is not None:
                self._latest = self._context()
            if self._latest is not None:
                connection.context = self._latest

        context.sni_callback = handshake
        return context

    def _context(self) -> ssl.SSLContext:
        certificate, key, *client_ca = map(str, self._files)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca[0] if client_ca else None)
        context.load_cert_chain(certificate, key)
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def credentials(self) -> grpc.ServerCredentials:
        """For a port. gRPC asks before each handshake whether they are still the same."""
        mutual = len(self._files) == 3
        # None means: as before. grpc's stub does not know.
        return grpc.dynamic_ssl_server_credentials(self._given, self._changed, mutual)  # type: ignore[arg-type]

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        before, self._given = self._given, self._said.now()
        return None if self._given is before else self._given

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, *client_ca = [_contents(variable, path) for variable, path in zip(_VARIABLES, self._files, strict=False)]
        check_pair(certificate, key)
        for authorities in client_ca:
            _certificates(_VARIABLES[2], authorities)
        configuration: grpc.ServerCertificateConfiguration = grpc.ssl_server_certificate_configuration(
            [(key, certificate)], client_ca[0] if client_ca else None
        )
        return configuration


def check_pair(certificate: bytes, key: bytes) -> None:
    """Refuse a key that is not the certificate's: a server that had it would fail at every handshake.

    Raises:
        InvalidArgument: what holds neither.
        FailedPrecondition: they do not fit, as while one of two files was replaced.
    """
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(_VARIABLES[1], "is no private key in PEM without a password", "write one with `openssl genpkey`") from error
    first = _certificates(_VARIABLES[0], certificate)[0]
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != first.public_key().public_bytes(*form):
        raise FailedPrecondition(f"{_VARIABLES[1]}: is not the key of {_VARIABLES[0]}; name the two that were made together")


def _certificates(variable: str, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise InvalidArgument(variable, "holds no certificate in PEM", "name a file that begins with BEGIN CERTIFICATE") from error


def _contents(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"{variable}: {path} cannot be read ({error}); correct it") from error
