"""The page of who may do what with which topic, from the table that the tests hold a Kafka to."""

from __future__ import annotations

from docs.generate.markdown import NOTE, table
from services.topic_rights import RIGHTS


def topic_rights_page() -> str:
    """For each topic, who reads and who writes it; and the groups."""
    topics = list(dict.fromkeys(topic for one in RIGHTS.values() for topic in (*one.writes, *one.reads, *one.sees)))
    rows = [
        (
            f"`{topic}`",
            ", ".join(user for user, one in RIGHTS.items() if topic in one.writes),
            ", ".join(user for user, one in RIGHTS.items() if topic in one.reads),
            ", ".join(user for user, one in RIGHTS.items() if topic in one.sees),
        )
        for topic in topics
    ]
    groups = [
        (f"`{group}`", ", ".join(user for user, one in RIGHTS.items() if group in one.groups))
        for group in dict.fromkeys(group for one in RIGHTS.values() for group in one.groups)
    ]
    return "\n".join(
        [
            NOTE,
            "# Rights to topics",
            "Kafka's access control lists are by user: give each service one of its own, and these rights. Whoever may write a topic may "
            "say anything there of any tenant, so callers have none; `reporter` is for a service of yours that sends outcomes by Kafka "
            "instead of `ReportOutcome`. `learner` is `smoa router learn`, `operator` whoever runs `smoa optimizer`, `smoa dlq` and "
            "`smoa access audit`. Nobody makes topics: make them before the first start, all with as many partitions, or let the optimizer "
            "create them. [Security](../security.md) says why.\n",
            table(("topic", "WRITE", "READ", "DESCRIBE alone"), rows),
            "",
            table(("consumer group", "READ"), groups),
            "",
        ]
    )
