"""How a client reaches Kafka: its address, TLS, and how it says who it is."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.abc import AbstractTokenProvider

from smoa.access.addresses import SYSTEM, is_loopback
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.settings import from_environment
from smoa.text_file import read_secret

OAUTH: Final = "OAUTHBEARER"
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", OAUTH)


@dataclass(frozen=True, kw_only=True)
class KafkaSettings:
    """Read from the keys in the fields' metadata."""

    kafka_bootstrap: str = field(default="127.0.0.1:9092", metadata={"key": "SMOA_KAFKA_BOOTSTRAP"})
    """Kafka's address: host:port, with commas between several."""
    kafka_tls_ca: str = field(default="", metadata={"key": "SMOA_KAFKA_TLS_CA"})
    """File of the authorities that sign the brokers' certificates, or `system` for the machine's; empty: no TLS."""
    kafka_tls_certificate: str = field(default="", metadata={"key": "SMOA_KAFKA_TLS_CERTIFICATE"})
    """File of the certificate to show to Kafka, if it asks for one."""
    kafka_tls_key: str = field(default="", metadata={"key": "SMOA_KAFKA_TLS_KEY"})
    """File of its private key."""
    kafka_sasl: str = field(default="", metadata={"key": "SMOA_KAFKA_SASL"})
    """How to say to Kafka who calls: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER; empty: not at all, or by certificate."""
    kafka_user: str = field(default="", metadata={"key": "SMOA_KAFKA_USER"})
    """The user, for PLAIN and SCRAM."""
    kafka_password_file: str = field(default="", metadata={"key": "SMOA_KAFKA_PASSWORD_FILE"})
    """File of the user's password; read again for each connection that is begun anew."""
    kafka_token_file: str = field(default="", metadata={"key": "SMOA_KAFKA_TOKEN_FILE"})
    """File of the token, for OAUTHBEARER, which somebody else keeps fresh, as Kubernetes does with a projected one."""

    @property
    def kafka(self) -> Kafka:
        """The Kafka that the settings mean.

        Raises:
            InvalidArgument: settings that contradict each other.
        """
        return Kafka(self)


class _TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # of a library without types
    """The token that is in a file when Kafka asks for one."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def token(self) -> str:
        """See `aiokafka.abc.AbstractTokenProvider`."""
        return read_secret("SMOA_KAFKA_TOKEN_FILE", self._path)


class Kafka:
    """A Kafka, and how to be known there. Its files are read whenever a client is made."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Check the settings.

        Raises:
            InvalidArgument: settings that contradict each other, or a secret that would cross a network in the clear.
        """
        self._settings = settings
        self.address = settings.kafka_bootstrap
        _check(settings)

    @classmethod
    def said(cls, environment: Mapping[str, str]) -> Kafka:
        """As an environment says.

        Raises:
            InvalidArgument: settings that contradict each other.
        """
        return from_environment(KafkaSettings, environment, "SMOA_").kafka

    @classmethod
    def at(cls, kafka: Kafka | str) -> Kafka:
        """Itself; of an address, the Kafka there, as this process's environment says how to be known.

        Raises:
            InvalidArgument: settings that contradict each other.
        """
        return kafka if isinstance(kafka, Kafka) else cls.said({**os.environ, "SMOA_KAFKA_BOOTSTRAP": kafka})

    def __str__(self) -> str:
        return self.address

    def options(self) -> dict[str, Any]:
        """For the constructors of aiokafka's clients.

        Raises:
            FailedPrecondition: a file that cannot be read.
        """
        said, context = self._settings, self._context()
        protocol = ("SASL_SSL" if context else "SASL_PLAINTEXT") if said.kafka_sasl else ("SSL" if context else "PLAINTEXT")
        options: dict[str, Any] = {"bootstrap_servers": self.address, "security_protocol": protocol}
        if context is not None:
            options["ssl_context"] = context
        if said.kafka_sasl == OAUTH:
            options |= {"sasl_mechanism": OAUTH, "sasl_oauth_token_provider": _TokenFile(said.kafka_token_file)}
        elif said.kafka_sasl:
            options |= {
                "sasl_mechanism": said.kafka_sasl,
                "sasl_plain_username": said.kafka_user,
                "sasl_plain_password": read_secret("SMOA_KAFKA_PASSWORD_FILE", said.kafka_password_file),
            }
        return options

    def _context(self) -> ssl.SSLContext | None:
        said = self._settings
        if not said.kafka_tls_ca:
            return None
        try:
            context = ssl.create_default_context(cafile=None if said.kafka_tls_ca == SYSTEM else said.kafka_tls_ca)
            if said.kafka_tls_certificate:
                context.load_cert_chain(said.kafka_tls_certificate, said.kafka_tls_key)
        except OSError as error:  # an ssl.SSLError is one
            named = ", ".join(one for one in (said.kafka_tls_ca, said.kafka_tls_certificate, said.kafka_tls_key) if one)
            raise FailedPrecondition(f"SMOA_KAFKA_TLS_CA: of {named}, one cannot be used ({error}); correct it") from error
        return context


def _check(said: KafkaSettings) -> None:
    if said.kafka_sasl and said.kafka_sasl not in MECHANISMS:
        raise InvalidArgument("SMOA_KAFKA_SASL", f"{said.kafka_sasl!r} is unknown", f"use {', '.join(MECHANISMS)}")
    if bool(said.kafka_tls_certificate) != bool(said.kafka_tls_key):
        raise InvalidArgument("SMOA_KAFKA_TLS_KEY", "and SMOA_KAFKA_TLS_CERTIFICATE are not both given", "name both files")
    if said.kafka_tls_key and not said.kafka_tls_ca:
        raise InvalidArgument("SMOA_KAFKA_TLS_CA", "is empty", f"a certificate is shown in TLS only; name who signs, or {SYSTEM}")
    of_password, of_token = bool(said.kafka_sasl) and said.kafka_sasl != OAUTH, said.kafka_sasl == OAUTH
    for variable, value, is_wanted in (
        ("SMOA_KAFKA_USER", said.kafka_user, of_password),
        ("SMOA_KAFKA_PASSWORD_FILE", said.kafka_password_file, of_password),
        ("SMOA_KAFKA_TOKEN_FILE", said.kafka_token_file, of_token),
    ):
        if is_wanted and not value:
            raise InvalidArgument(variable, "is empty", f"{said.kafka_sasl} needs it")
        if value and not is_wanted:
            raise InvalidArgument(variable, f"is not for SMOA_KAFKA_SASL={said.kafka_sasl}", "unset it, or name its mechanism")
    in_the_clear = said.kafka_sasl in ("PLAIN", OAUTH) and not said.kafka_tls_ca
    if in_the_clear and not all(is_loopback(one.strip()) for one in said.kafka_bootstrap.split(",")):
        raise InvalidArgument(
            "SMOA_KAFKA_TLS_CA", f"is empty, and {said.kafka_bootstrap} is on another machine", f"{said.kafka_sasl} goes through TLS only"
        )
