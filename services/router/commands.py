"""`smoa router`: learning a ranker from logged decisions and their outcomes, offline."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from services.router.evaluate_command import evaluate_command
from services.router.learning.publication import Step, next_step
from services.router.learning.ranker import FEATURES, Ranker, builtin
from services.router.learning.ranker_training import Estimate, Logged, beats_hybrid, evaluate, fit, train
from services.router.library_commands import rebuild_command, reembed_command
from services.router.lifecycle_consumer import RANKER_KEY
from services.router.snapshots import snapshot_command
from smoa.cli.options import kafka_option, sources_option
from smoa.cli.tables import show_table
from smoa.errors import FailedPrecondition, InvalidArgument, Unavailable
from smoa.events import DECISIONS, LIFECYCLE, OUTCOMES, event
from smoa.outbox import send_once
from smoa.reader import messages_of, read_topic
from smoa.v1 import events_pb2, feedback_pb2, router_pb2
from smoa.verdicts import MAX_VERDICTS, is_new, source_weights, standing

logs_argument = click.argument("logs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")


@click.group("router")
def router_group() -> None:
    """See how well a library is told apart; teach the learned strategy from outcomes; make a lost index again.

    \b
    Before it serves:    smoa router evaluate --page library.html
    Collect them:        smoa router log -o log.jsonl
    Learn a ranker:      smoa router train log.jsonl -o ranker.json
    Judge it:            smoa router judge log.jsonl --ranker ranker.json
    Use it everywhere:   smoa router publish ranker.json
    All of it, for ever: smoa router learn --every 3600
    A lost index:        smoa router rebuild
    Another embedder:    smoa router reembed
    Before it is lost:   smoa router snapshot

    Only decisions of `--strategy learned` teach: it notes what it considered, and how likely each was to come first.
    """  # noqa: D301  the escape tells click to keep the lines


router_group.add_command(evaluate_command)
router_group.add_command(rebuild_command)
router_group.add_command(reembed_command)
router_group.add_command(snapshot_command)


@router_group.command("log")
@click.option("-o", "output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSONL to write.")
@kafka_option
@sources_option
@json_option
def log_command(output: Path, kafka: str, sources: str, as_json: bool) -> None:
    """Write the learned decisions in Kafka that have an outcome: {"decision", "outcome"} a line."""

    async def work() -> None:
        written = 0
        with output.open("w") as file:
            async for decision, outcome in _joined(kafka, source_weights(sources)):
                file.write(json.dumps({"decision": MessageToDict(decision), "outcome": MessageToDict(outcome)}) + "\n")
                written += 1
        click.echo(
            json.dumps({"decisions": written, "file": str(output)}) if as_json else f"{written:,} decisions with outcomes in {output}"
        )

    asyncio.run(work())


@router_group.command("train")
@logs_argument
@click.option("-o", "output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Artefact to write.")
@json_option
def train_command(logs: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Learn a ranker from LOGS, and say what it, hybrid and the logged decisions reach on the latest fifth of them."""
    ranker = train(read_logs(logs))
    output.write_bytes(ranker.to_bytes())
    if as_json:
        return click.echo(json.dumps({"version": ranker.version, **ranker.report}))
    rows = [(name, f"{weight:+.3f}") for name, weight in zip(FEATURES, ranker.weights, strict=True)]
    show_table(("feature", "weight"), rows, title=f"ranker {ranker.version}")
    _show({name: Estimate(ranker.report[f"{name}_success"], ranker.report[f"{name}_error"]) for name in ("learned", "hybrid")})
    click.echo(f"ahead of hybrid by {ranker.report['lead']:.3f}, give or take {ranker.report['lead_error']:.3f} (one standard error)")
    click.echo(f"written to {output}; " + ("publish it" if beats_hybrid(ranker) else "it does not beat hybrid, and will not be published"))
    return None


@router_group.command("judge")
@logs_argument
@click.option("--ranker", "path", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Artefact to judge.")
@json_option
def judge_command(logs: tuple[Path, ...], path: Path, as_json: bool) -> None:
    """Estimate what a ranker's first choices, and hybrid's, would have reached on LOGS (doubly robust; use logs it did not learn from)."""
    logged, ranker = read_logs(logs), Ranker.from_bytes(path.read_bytes())
    if not logged:
        raise FailedPrecondition("log: holds no learned decision with an outcome; collect some first")
    rewards = fit(logged)
    estimates = {"learned": evaluate(ranker, logged, rewards), "hybrid": evaluate(None, logged, rewards)}
    if as_json:
        return click.echo(json.dumps({name: {"success": one.success, "error": one.error} for name, one in estimates.items()}))
    return _show(estimates)


@router_group.command("publish")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@kafka_option
@click.option("--anyway", is_flag=True, help="Also if it did not beat hybrid when it was trained.")
@json_option
def publish_command(path: Path, kafka: str, anyway: bool, as_json: bool) -> None:
    """Announce a ranker to every router; they decide with it at once, and after a restart."""
    data = path.read_bytes()
    ranker = Ranker.from_bytes(data)
    if not anyway and not beats_hybrid(ranker):
        raise FailedPrecondition("ranker: did not beat hybrid on held-out outcomes; collect more, or say --anyway")

    async def work() -> None:
        current, previous, _ = await announced(kafka)
        before = previous if current.version == ranker.version else current
        await _announce(kafka, ranker, before, "smoa router publish", ranker.report)

    asyncio.run(work())
    click.echo(json.dumps({"announced": ranker.version}) if as_json else f"ranker {ranker.version} is announced")


@router_group.command("learn")
@kafka_option
@click.option("--every", default=0.0, help="Do it again after so many seconds; 0 means once.")
@click.option("--days", default=30.0, show_default=True, help="How far back decisions teach.")
@click.option("--without", multiple=True, metavar="TENANT", help="Learn nothing from this tenant's decisions; may repeat.")
@click.option("--dry-run", is_flag=True, help="Announce nothing.")
@sources_option
@json_option
def learn_command(kafka: str, every: float, days: float, without: tuple[str, ...], dry_run: bool, sources: str, as_json: bool) -> None:
    """Learn from what is in Kafka and announce the ranker if it is better than hybrid and than the current one, on outcomes it did not see.

    A ranker whose own decisions turn out worse than hybrid's would have been is taken back: the one before it is announced again.
    """

    async def once() -> dict[str, object]:
        current, previous, at_us = await announced(kafka)
        since_us = int((time.time() - days * 86400) * 1e6)
        logged = []
        wanted = lambda one: one.decided_at_us >= since_us and one.tenant not in without  # noqa: E731
        async for decision, outcome in _joined(kafka, source_weights(sources), wanted):
            with suppress(InvalidArgument):  # of another version's features
                logged.append(logged_of(decision, outcome, decision.decision_id))
        try:
            step = await asyncio.to_thread(next_step, logged, current, previous, at_us)
        except FailedPrecondition as error:
            step = Step(None, None, str(error))
        if step.ranker is not None and not dry_run:
            await _announce(kafka, step.ranker, step.previous, step.reason, step.evidence)
        said = step.ranker.version if step.ranker else ""
        return {"current": current.version, "announced": said, "reason": step.reason, "outcomes": len(logged), **step.evidence}

    async def work() -> None:
        while True:
            try:
                done = await once()
            except Unavailable as error:
                if not every:
                    raise
                click.echo(f"tried again in {every:g} s: {error}", err=True)
            else:
                told = f"announced {done['announced']}" if done["announced"] else f"kept {done['current']}"
                click.echo(json.dumps(done) if as_json else f"{told}: {done['reason']}")
            if not every:
                return
            await asyncio.sleep(every)

    asyncio.run(work())


def read_logs(paths: Iterable[Path]) -> list[Logged]:
    """Decisions and outcomes of JSONL files.

    Raises:
        InvalidArgument: naming the file and line that is not such a pair.
    """
    logged = []
    for path in paths:
        with path.open() as lines:
            logged += [_logged(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    return logged


def _logged(line: str, where: str) -> Logged:
    try:
        body = json.loads(line)
        decision = ParseDict(body["decision"], router_pb2.Decision(), ignore_unknown_fields=True)
        outcome = ParseDict(body["outcome"], feedback_pb2.Outcome(), ignore_unknown_fields=True)
    except (ValueError, KeyError, TypeError, ParseError) as error:
        raise InvalidArgument(where, f"is not a decision with its outcome ({error})", "write it with `smoa router log`") from error
    return logged_of(decision, outcome, where)


def logged_of(decision: router_pb2.Decision, outcome: feedback_pb2.Outcome, where: str) -> Logged:
    """What training reads of a decision and its outcome.

    Raises:
        InvalidArgument: its features are of another version.
    """
    features = np.array([one.features for one in decision.ranked], np.float64)
    if features.ndim != 2 or features.shape[1] != len(FEATURES) or not np.isfinite(features).all():
        raise InvalidArgument(where, "has no features of this version", "log decisions of the learned strategy, made by this version")
    propensities = np.array([one.propensity for one in decision.ranked])
    return Logged(features, propensities, float(outcome.success), decision.decided_at_us, decision.ranker)


def _show(estimates: dict[str, Estimate]) -> None:
    rows = [(name, f"{one.success:.1%}", f"{one.error:.1%}") for name, one in estimates.items()]
    show_table(("first choices of", "estimated success", "standard error"), rows)


async def _announce(kafka: str, ranker: Ranker, previous: Ranker | None, reason: str, evidence: Mapping[str, float]) -> None:
    message = events_pb2.LifecycleEvent(
        adapter_id=RANKER_KEY,
        action=events_pb2.LIFECYCLE_ACTION_RANKER_PUBLISHED,
        ranker=ranker.to_bytes(),
        previous_ranker=previous.to_bytes() if previous else b"",
        reason=reason,
        evidence=evidence,
        occurred_at_us=time.time_ns() // 1000,
    )
    await send_once(kafka, [event(LIFECYCLE, RANKER_KEY, message)])


async def announced(kafka: str) -> tuple[Ranker, Ranker | None, int]:
    """The ranker that was announced last, the one before it, and when that was (0: never).

    One that this version cannot read is none: its routers cannot, either.

    Raises:
        Unavailable: the broker does not answer.
    """
    last: events_pb2.LifecycleEvent | None = None
    async for message in _events(kafka, LIFECYCLE):
        if isinstance(message, events_pb2.LifecycleEvent) and message.ranker:
            last = message
    if last is None:
        return builtin(), None, 0
    return _read(last.ranker) or builtin(), _read(last.previous_ranker), last.occurred_at_us


def _read(artefact: bytes) -> Ranker | None:
    try:
        return Ranker.from_bytes(artefact) if artefact else None
    except InvalidArgument:
        return None


async def _joined(
    kafka: str, weights: Mapping[str, float], wanted: Callable[[router_pb2.Decision], bool] = lambda _: True
) -> AsyncIterator[tuple[router_pb2.Decision, feedback_pb2.Outcome]]:
    """Learned decisions that are wanted, and what stands for each by the weights of who said it."""
    decisions: dict[str, router_pb2.Decision] = {}
    async for message in _events(kafka, DECISIONS):
        if isinstance(message, router_pb2.Decision) and message.ranked and wanted(message):
            decisions[message.decision_id] = message
    said: dict[str, list[feedback_pb2.Outcome]] = {}
    async for message in _events(kafka, OUTCOMES):
        if isinstance(message, feedback_pb2.Outcome) and (decision := decisions.get(message.decision_id)) is not None:
            if decision.tenant != (message.tenant or "public"):
                continue  # anybody can name a decision; only who asked for it may judge it
            if [one.adapter_id for one in decision.adapters[:1]] != [decision.ranked[0].adapter_id]:
                continue  # a canary answered in its place
            verdicts = said.setdefault(message.decision_id, [])
            if len(verdicts) < MAX_VERDICTS and is_new(message, verdicts):
                for text in ("input", "output", "corrected_output"):
                    message.ClearField(text)  # nothing is learned from them here, and these are all outcomes of a topic
                verdicts.append(message)
    for decision_id, verdicts in said.items():
        if (stands := standing(verdicts, weights)) is not None:
            last = verdicts[-1]
            told = feedback_pb2.Outcome(
                decision_id=decision_id, tenant=last.tenant, success=stands.success, score=stands.score, reported_at_us=last.reported_at_us
            )
            yield decisions[decision_id], told


async def _events(kafka: str, topic: str) -> AsyncIterator[Message]:
    """Every event of a topic; what cannot be read is for the optimizer to put aside."""
    async for record in read_topic(kafka, topic):
        for one in messages_of(record):
            yield one
