"""A real Apache Kafka that nobody reaches in the clear: TLS, users by password, by SCRAM and by token, and rights of each to each topic."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import confluent_kafka
import confluent_kafka.admin

from services.optimizer.stream.changelog import COUNTS, JOINS
from services.topic_rights import RIGHTS
from smoa.kafka import OAUTH, Kafka
from smoa.topics import TOPICS, ensure_topics
from tests.access_support import AUDIENCE, ISSUER, Authority, Issuer, key_set
from tests.kafka_support import ApacheKafka, broker_port

KAFKA: Final[Any] = confluent_kafka.admin
"""Its names are not declared as exported."""
ADMIN: Final = "admin"
SCRAM: Final = "SCRAM-SHA-512"
MECHANISMS: Final = {
    "router": "PLAIN",
    "executor": OAUTH,
    "optimizer": SCRAM,
    "operator": SCRAM,
    "learner": OAUTH,
    "reporter": "PLAIN",
    "gateway": SCRAM,
}
"""How each says who it is: every way is somebody's."""


class SecuredKafka(ApacheKafka):
    """The users of `RIGHTS`, each with those rights and no others, and an administrator."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        port = broker_port(2)
        self.folder, self.authority, self.issuer = folder, Authority(folder, "kafka-authority"), Issuer()
        pair = self.authority.signed("broker")
        keystore, keys, properties = folder / "keystore.pem", folder / "issuer.json", folder / "secured.properties"
        keystore.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
        keys.write_text(key_set(self.issuer))
        plain = " ".join(f'user_{name}="{name}-secret"' for name in (ADMIN, *(one for one, how in MECHANISMS.items() if how == "PLAIN")))
        settings = {
            "listeners": f"SASL_SSL://127.0.0.1:{port},SSL://127.0.0.1:{port + 2},CONTROLLER://127.0.0.1:{port + 1}",
            "advertised.listeners": f"SASL_SSL://127.0.0.1:{port},SSL://127.0.0.1:{port + 2}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
            "inter.broker.listener.name": "SASL_SSL",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "sasl.enabled.mechanisms": f"PLAIN,{SCRAM},{OAUTH}",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.file),
            "listener.name.ssl.ssl.client.auth": "required",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'username="{ADMIN}" password="{ADMIN}-secret" {plain};',
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config": "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule "
            "required;",
            "listener.name.sasl_ssl.oauthbearer.sasl.server.callback.handler.class": "org.apache.kafka.common.security.oauthbearer."
            "OAuthBearerValidatorCallbackHandler",
            "listener.name.sasl_ssl.oauthbearer.sasl.oauthbearer.jwks.endpoint.url": keys.as_uri(),
            "listener.name.sasl_ssl.oauthbearer.sasl.oauthbearer.expected.issuer": ISSUER,
            "listener.name.sasl_ssl.oauthbearer.sasl.oauthbearer.expected.audience": AUDIENCE,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{ADMIN};User:ANONYMOUS;User:CN=superuser",
        }
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys.as_uri()}"
        super().__init__(folder / "data", port, environment={"KAFKA_PROPS": str(properties), "JAVA_TOOL_OPTIONS": allowed})
        self.by_certificate = f"127.0.0.1:{port + 2}"

    def environment(self, user: str) -> dict[str, str]:
        """What a process of that user is told."""
        how = MECHANISMS.get(user, "PLAIN")
        secret = self.folder / f"{user}.secret"
        secret.write_text((self.token(user) if how == OAUTH else f"{user}-secret") + "\n")
        named = (
            {"SMOA_KAFKA_TOKEN_FILE": str(secret)} if how == OAUTH else {"SMOA_KAFKA_USER": user, "SMOA_KAFKA_PASSWORD_FILE": str(secret)}
        )
        tls = {"SMOA_KAFKA_TLS_CA": str(self.authority.file)}
        return {"SMOA_KAFKA_BOOTSTRAP": self.bootstrap, "SMOA_KAFKA_SASL": how, **tls, **named}

    def token(self, user: str) -> str:
        """One that Kafka takes."""
        return self.issuer.token(sub=user, iat=0, scope="kafka")

    def as_user(self, user: str) -> Kafka:
        """Kafka for that user."""
        return Kafka.said(self.environment(user))

    def allowed(self, user: str, topics: Collection[str]) -> dict[str, set[str]]:
        """What the broker lets a user do with each topic."""
        admin = KAFKA.AdminClient(librdkafka_options(self.environment(user)))
        if MECHANISMS[user] == OAUTH:
            admin.poll(1)  # it asks for the token there
        asked = admin.describe_topics(confluent_kafka.TopicCollection(list(topics)), include_authorized_operations=True)
        found = dict[str, set[str]]()
        for name, future in asked.items():
            try:
                found[name] = {one.name for one in future.result(30).authorized_operations}
            except confluent_kafka.KafkaException as error:
                if error.args[0].code() != confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise
                found[name] = set()
        return found

    async def make_topics(self) -> None:
        """Make topics and users, and give each user its rights."""
        await ensure_topics(self.as_user(ADMIN), (*TOPICS, JOINS, COUNTS), 4, timeout_s=60)
        await asyncio.to_thread(self._give_rights)

    def _give_rights(self) -> None:
        admin = KAFKA.AdminClient(librdkafka_options(self.environment(ADMIN)))
        scram = KAFKA.ScramCredentialInfo(KAFKA.ScramMechanism.SCRAM_SHA_512, 4096)
        users = [user for user, how in MECHANISMS.items() if how == SCRAM]
        credentials = [KAFKA.UserScramCredentialUpsertion(user, scram, f"{user}-secret".encode()) for user in users]
        _wait(admin.alter_user_scram_credentials(credentials))
        _wait(admin.create_acls([one for user in RIGHTS for one in _acls(user)]))


def _acls(user: str) -> list[Any]:
    rights = RIGHTS[user]
    wanted = [(KAFKA.ResourceType.TOPIC, name, KAFKA.AclOperation.READ) for name in rights.reads]
    wanted += [(KAFKA.ResourceType.TOPIC, name, KAFKA.AclOperation.WRITE) for name in rights.writes]
    wanted += [(KAFKA.ResourceType.TOPIC, name, KAFKA.AclOperation.DESCRIBE) for name in rights.sees]
    wanted += [(KAFKA.ResourceType.GROUP, name, KAFKA.AclOperation.READ) for name in rights.groups]
    literal, allow = KAFKA.ResourcePatternType.LITERAL, KAFKA.AclPermissionType.ALLOW
    return [KAFKA.AclBinding(kind, name, literal, f"User:{user}", "*", operation, allow) for kind, name, operation in wanted]


def _wait(futures: Mapping[Any, Future[Any]]) -> None:
    for future in futures.values():
        future.result(30)


def librdkafka_options(environment: Mapping[str, str]) -> dict[str, Any]:
    """What librdkafka's clients, of which other teams' services are made, are given for the same."""
    options: dict[str, Any] = {
        "bootstrap.servers": environment["SMOA_KAFKA_BOOTSTRAP"],
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": environment["SMOA_KAFKA_TLS_CA"],
        "sasl.mechanism": environment["SMOA_KAFKA_SASL"],
    }
    if environment["SMOA_KAFKA_SASL"] == OAUTH:
        token = Path(environment["SMOA_KAFKA_TOKEN_FILE"]).read_text().strip()
        options["oauth_cb"] = lambda _: (token, 2**31)
    else:
        options["sasl.username"] = environment["SMOA_KAFKA_USER"]
        options["sasl.password"] = Path(environment["SMOA_KAFKA_PASSWORD_FILE"]).read_text().strip()
    return options
