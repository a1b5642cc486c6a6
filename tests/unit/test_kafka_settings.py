"""What a client of Kafka is made with, and settings that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.kafka import Kafka

AWAY = {"SMOA_KAFKA_BOOTSTRAP": "kafka.example:9092"}
PLAIN = {"SMOA_KAFKA_SASL": "PLAIN", "SMOA_KAFKA_USER": "router", "SMOA_KAFKA_PASSWORD_FILE": "secret"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"SMOA_KAFKA_SASL": "GSSAPI"}, "SMOA_KAFKA_SASL: 'GSSAPI' is unknown; use PLAIN"),
        ({"SMOA_KAFKA_TLS_CERTIFICATE": "a"}, "SMOA_KAFKA_TLS_KEY: and SMOA_KAFKA_TLS_CERTIFICATE are not both given"),
        ({"SMOA_KAFKA_TLS_CERTIFICATE": "a", "SMOA_KAFKA_TLS_KEY": "b"}, "SMOA_KAFKA_TLS_CA: is empty; a certificate is shown in TLS only"),
        ({"SMOA_KAFKA_SASL": "SCRAM-SHA-512"}, "SMOA_KAFKA_USER: is empty; SCRAM-SHA-512 needs it"),
        ({"SMOA_KAFKA_SASL": "PLAIN", "SMOA_KAFKA_USER": "u"}, "SMOA_KAFKA_PASSWORD_FILE: is empty; PLAIN needs it"),
        ({"SMOA_KAFKA_SASL": "OAUTHBEARER"}, "SMOA_KAFKA_TOKEN_FILE: is empty; OAUTHBEARER needs it"),
        ({**PLAIN, "SMOA_KAFKA_TOKEN_FILE": "t"}, "SMOA_KAFKA_TOKEN_FILE: is not for SMOA_KAFKA_SASL=PLAIN"),
        ({"SMOA_KAFKA_USER": "u"}, "SMOA_KAFKA_USER: is not for SMOA_KAFKA_SASL=;"),
        ({**AWAY, **PLAIN}, r"SMOA_KAFKA_TLS_CA: is empty, and kafka\.example:9092 is on another machine; PLAIN goes through TLS only"),
        (
            {"SMOA_KAFKA_SASL": "OAUTHBEARER", "SMOA_KAFKA_TOKEN_FILE": "t", "SMOA_KAFKA_BOOTSTRAP": "127.0.0.1:1,other:2"},
            "SMOA_KAFKA_TLS_CA: is empty, and 127.0.0.1:1,other:2 is on another machine; OAUTHBEARER",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_named(said: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        Kafka.said(said)


def test_a_secret_is_read_when_a_client_is_made(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    kafka = Kafka.said({**PLAIN, "SMOA_KAFKA_PASSWORD_FILE": str(secret)})
    with pytest.raises(FailedPrecondition, match=r"^SMOA_KAFKA_PASSWORD_FILE: .*secret cannot be read"):
        kafka.options()
    for password in ("first", "second"):
        secret.write_text(password + "\n")
        options = kafka.options()
        assert (options["security_protocol"], options["sasl_plain_username"], options["sasl_plain_password"]) == (
            "SASL_PLAINTEXT",
            "router",
            password,
        )
    assert "second" not in repr(kafka) + str(kafka)


async def test_a_token_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    provider = Kafka.said({"SMOA_KAFKA_SASL": "OAUTHBEARER", "SMOA_KAFKA_TOKEN_FILE": str(tmp_path / "token")}).options()[
        "sasl_oauth_token_provider"
    ]
    (tmp_path / "token").write_text("two\n")
    assert await provider.token() == "two"


def test_an_address_alone_asks_for_nothing_and_authorities_that_are_none_are_named(tmp_path: Path) -> None:
    assert Kafka.at("127.0.0.1:1").options() == {"bootstrap_servers": "127.0.0.1:1", "security_protocol": "PLAINTEXT"}
    assert Kafka.said({"SMOA_KAFKA_TLS_CA": "system"}).options()["security_protocol"] == "SSL"
    (tmp_path / "none.pem").write_text("none")
    with pytest.raises(FailedPrecondition, match=r"^SMOA_KAFKA_TLS_CA: of .*none\.pem, one cannot be used"):
        Kafka.said({"SMOA_KAFKA_TLS_CA": str(tmp_path / "none.pem")}).options()
