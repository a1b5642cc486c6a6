"""`smoa dlq`: events that could not be used, and another try for them."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Collection, Sequence

import click
from google.protobuf.json_format import MessageToDict

from smoa.cli.options import json_lines_option, kafka_option
from smoa.cli.tables import say, show_table
from smoa.errors import FailedPrecondition, InvalidArgument, NotFound
from smoa.events import ADAPTER_OUTCOMES, DEAD_LETTER, TYPES, decode, headers
from smoa.outbox import Outbox, Record, Refused
from smoa.reader import read_topic
from smoa.topics import partition_of
from smoa.v1.events_pb2 import DeadLetter

SHOWN = 50


@click.group("dlq")
def dlq_group() -> None:
    """Events that the optimizer put aside: what they are, why, and another try.

    \b
    Look:                    smoa dlq list
    Try one again:           smoa dlq replay smoa.outcomes.v1:2:41:0
    Try all of a reason:     smoa dlq replay --reason "no decision of this id"

    Nothing is lost by a failed replay: what still cannot be used is put aside again.
    """  # noqa: D301  the escape tells click to keep the lines


@dlq_group.command("list")
@kafka_option
@click.option("--topic", default="", help="Only those of this topic.")
@click.option("--reason", default="", help="Only those whose reason contains this.")
@json_lines_option
def list_command(kafka: str, topic: str, reason: str, as_json: bool) -> None:
    """Show what is put aside, oldest first, and how much of it there is of each reason."""
    letters = asyncio.run(dead_letters(kafka))
    chosen = {name: one for name, one in letters.items() if topic in ("", one.topic) and reason in one.reason}
    if as_json:
        for name, one in chosen.items():
            click.echo(json.dumps({"id": name, **MessageToDict(one)}))
        return
    if not chosen:
        click.echo("nothing is put aside" if not letters else f"none of the {len(letters):,} that are put aside")
        return
    rows = [(name, _age(one.dead_at_us), one.key.decode("utf-8", "replace"), one.reason) for name, one in list(chosen.items())[-SHOWN:]]
    show_table(("id", "age", "key", "reason"), rows, prose={"key", "reason"})
    if len(chosen) > SHOWN:
        click.echo(f"the newest {SHOWN} of {len(chosen):,}; --json shows all")
    for (where, why), many in Counter((one.topic, one.reason.partition(":")[0]) for one in chosen.values()).most_common():
        say(f"{many:,} of {where}: {why}")


@dlq_group.command("replay")
@click.argument("ids", nargs=-1)
@kafka_option
@click.option("--topic", default="", help="All of this topic.")
@click.option("--reason", default="", help="All whose reason contains this.")
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent again.")
@json_lines_option
def replay_command(ids: Sequence[str], kafka: str, topic: str, reason: str, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Send what was put aside to its topic again, and take it off the list once it is there.

    IDS are as `smoa dlq list` shows them, or beginnings that only one has. What was counted in the meantime is not counted again.
    """
    if not ids and not topic and not reason and not everything:
        raise click.UsageError("name ids, or choose with --topic, --reason or --all")
    letters = asyncio.run(dead_letters(kafka))
    chosen = {name: letters[name] for name in (_letter_of(given, letters) for given in ids)}
    if not ids:
        chosen = {name: one for name, one in letters.items() if topic in ("", one.topic) and reason in one.reason}
    derived = [name for name, one in chosen.items() if one.topic == ADAPTER_OUTCOMES]
    if ids and derived:
        raise FailedPrecondition(f"{derived[0]}: is made from a decision and counted by its place, so it cannot be sent again")
    for name in derived:
        del chosen[name]
    hopeless = {name: why for name, one in chosen.items() if (why := _unreadable(one))}
    for name, why in hopeless.items():
        say(f"left: {name}: {why}", err=True)
    chosen = {name: one for name, one in chosen.items() if name not in hopeless}
    if not dry_run:
        for name, error in asyncio.run(_replay(kafka, chosen)).items():
            say(f"left: {name}: {error}", err=True)
            hopeless[name] = error
            del chosen[name]
    left = len(derived) + len(hopeless)
    if as_json:
        return click.echo(json.dumps({"sent": 0 if dry_run else len(chosen), "chosen": list(chosen), "left": left}))
    return click.echo(f"{'would send' if dry_run else 'sent'} {len(chosen):,} again, left {left:,}")


def _letter_of(given: str, letters: Collection[str]) -> str:
    """The id that was given, or the only one that begins so."""
    if given in letters:
        return given
    found = [name for name in letters if name.startswith(given)]
    if len(found) > 1:
        raise InvalidArgument("id", f"{given!r} may be any of {len(found):,}", f"give more of it: {', '.join(found[:10])}")
    if not found:
        raise NotFound("dead letter", given, "see `smoa dlq list`")
    return found[0]


def _unreadable(one: DeadLetter) -> str:
    """Why it would only come back, or nothing."""
    if one.topic not in TYPES:
        return f"{one.topic} is not one of this version's topics"
    try:
        decode(one.topic, one.value)
    except InvalidArgument as error:
        return str(error)
    return ""


async def dead_letters(kafka: str) -> dict[str, DeadLetter]:
    """What is put aside and was not replayed since, by id, oldest first."""
    found: dict[str, DeadLetter] = {}
    async for record in read_topic(kafka, DEAD_LETTER):
        name = (record.key or b"").decode("utf-8", "replace")
        found.pop(name, None)
        if record.value:
            found[name] = DeadLetter.FromString(record.value)
    return dict(sorted(found.items(), key=lambda pair: pair[1].dead_at_us))


async def _replay(kafka: str, letters: dict[str, DeadLetter]) -> dict[str, str]:
    """Send them, and take off the list those that are there; returns why those are not that Kafka does not take."""
    outbox, refused = Outbox(kafka, 30.0), dict[str, str]()
    try:
        partitions = {topic: await outbox.partitions(topic) for topic in {DEAD_LETTER, *(one.topic for one in letters.values())}}
        # As events of a producer of their own: they come later than others of their first one, and would pass for its repeats.
        again = {
            name: Record(
                one.topic,
                partition_of(one.key, partitions[one.topic]),
                one.key,
                one.value,
                headers(TYPES[one.topic].DESCRIPTOR.full_name, f"replay:{name}"),
            )
            for name, one in letters.items()
        }
        try:
            await outbox.send(again.values())
        except Refused:
            for name, record in again.items():
                try:
                    await outbox.send([record])
                except Refused as error:
                    refused[name] = str(error)
        names = [name.encode() for name in again if name not in refused]
        await outbox.send([Record(DEAD_LETTER, partition_of(name, partitions[DEAD_LETTER]), name, None) for name in names])
    finally:
        await outbox.close()
    return refused


def _age(at_us: int) -> str:
    seconds = max(0.0, time.time() - at_us / 1e6)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
