"""`smoa route`, `smoa generate`, `smoa report`, `smoa status`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from smoa.cli.names import find_adapter, find_composition, names_of
from smoa.cli.options import executor_option, router_option, tenant_option, with_client
from smoa.cli.sampling import sampling_of, sampling_options
from smoa.cli.tables import json_line, say, show_table
from smoa.client import SmoaClient
from smoa.v1 import executor_pb2, router_pb2

STRATEGIES = ("semantic", "task", "learned", "hybrid", "hierarchical", "mixture")

ROUTED = ("tenant", "strategy", "top_k", "tags", "turns", "session", "new_topic", "user", "own_only")
"""Options of a routing request, as the client names them."""


def endpoints(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say where the services are."""
    return executor_option(router_option(function))


def routing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a routing request."""
    for option in (
        tenant_option,
        click.option("--strategy", type=click.Choice(STRATEGIES), default="hybrid", show_default=True),
        click.option("--top-k", type=int, default=None, help="At most so many adapters."),
        click.option("--tag", "tags", multiple=True, help="A hint for the task and hybrid strategies; may repeat."),
        click.option("--turn", "turns", multiple=True, help="What was said before QUERY in its conversation, oldest first; may repeat."),
        click.option("--session", default="", help="Name of the conversation: the router remembers for a while what it is about."),
        click.option("--new-topic", is_flag=True, help="QUERY begins another topic: what was said before does not count."),
        click.option("--own-only", is_flag=True, help="Choose none that other tenants share."),
        click.option("--user", default="", help="Who asks, as a pseudonym: the learned strategy learns what is right for them."),
    ):
        function = option(function)
    return function


async def _route(client: SmoaClient, query: str, strategy: str, **options: Any) -> router_pb2.Decision:
    base_model = (await client.status()).base_model
    return await client.route(query, base_model=base_model, strategy=f"ROUTING_STRATEGY_{strategy.upper()}", **options)


@click.command("route")
@click.argument("query")
@routing_options
@endpoints
@click.option("--count", is_flag=True, help="Make a decision that counts as a use, with an id to report on; else it is only a look.")
@click.option("--explain", is_flag=True, help="Show the near candidates, too, the parts of their scores, and why each was chosen or not.")
@click.option("--json", "as_json", is_flag=True, help="Print the decision as JSON.")
def route_command(query: str, count: bool, explain: bool, as_json: bool, router: str, executor: str, **options: Any) -> None:
    """Show which adapters would answer QUERY. It is only a look: nothing is counted, no session goes on by it, and nothing can be
    reported on it.
    """

    async def work() -> None:
        async with SmoaClient(router=router, executor=executor) as client:
            decision = await _route(client, query, **options, look=not count, explain=explain)
            if as_json:
                click.echo(json_line(decision))
                return
            names = await names_of(client, [(options["tenant"], one.adapter_id) for one in decision.adapters])
            how = f"in {decision.handler_us / 1000:.2f} ms{' (cached)' if decision.cached else ''}, confidence {_shown(decision)}"
            how += ", by what the conversation is about" if decision.by_conversation else ""
            title = f"decision {decision.decision_id} {how}" if count else f"a look, {how}"
            if not decision.adapters:
                click.echo(f"{title}\nno adapter fits: the base model answers")
            if explain:
                _show_explanations(decision, title if decision.adapters else "near candidates")
            if explain or not decision.adapters:
                return
            rows = [(names.get(one.adapter_id, ""), one.adapter_id, f"{one.weight:.2f}", f"{one.score:.3f}") for one in decision.adapters]
            show_table(("adapter", "id", "weight", "score"), rows, title=title)

    asyncio.run(work())


def _shown(one: router_pb2.Decision | router_pb2.CandidateExplanation) -> str:
    return f"{one.confidence:.2f}" if one.HasField("confidence") else "unknown"


def _show_explanations(decision: router_pb2.Decision, title: str) -> None:
    rows = [
        (
            one.name,
            one.adapter_id,
            f"{one.weight:.2f}" if one.weight else "",
            *(f"{value:.3f}" for value in (one.score, one.cosine, one.example_cosine, one.task)),
            f"{one.before:.3f}" if one.before else "",
            f"{one.probability:.3f}",
            _shown(one),
            one.reason,
        )
        for one in decision.explanations
    ]
    show_table(
        ("adapter", "id", "weight", "score", "cosine", "nearest example", "hints", "before", "likely", "confidence", "why"),
        rows,
        title=title,
    )


@click.command("generate")
@click.argument("query")
@routing_options
@endpoints
@click.option("--base", is_flag=True, help="Do not route: the base model answers.")
@click.option("--composition", default="", help="Do not choose adapters: carry out the composition of this name (or id, or beginning).")
@click.option("--system", default="", help="What the model is told before QUERY, in place of what its chat template says by default.")
@click.option("--max-tokens", type=int, default=64, show_default=True)
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, its decision and its usage as JSON.")
def generate_command(
    query: str,
    router: str,
    executor: str,
    base: bool,
    composition: str,
    system: str,
    max_tokens: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Route QUERY and print the answer as it comes; of several answers (--n), each when all are there. A system text is not routed on."""
    sampling = sampling_of(options)
    if "logprobs" in sampling and not as_json:
        raise click.UsageError("--logprobs goes with --json")
    turns = [{"role": "system", "content": system}, {"role": "user", "content": query}] if system else []

    async def work() -> None:
        async with SmoaClient(router=router, executor=executor) as client:
            if base:
                decision = router_pb2.Decision(tenant=options["tenant"])
            elif composition:
                base_model = (await client.status()).base_model
                found = await find_composition(client, composition, options["tenant"])
                decision = await client.route(base_model=base_model, tenant=options["tenant"], composition=found.name)
            else:
                decision = await _route(client, query, **{name: options[name] for name in ROUTED})
            answers = [executor_pb2.GenerateResponse() for _ in range(max(1, sampling.get("n", 1)))]
            prompt = "" if turns else query
            async for response in client.carry_out(prompt, decision, messages=turns, max_tokens=max_tokens, **sampling):
                answer = answers[response.index]
                answer.text += response.text
                answer.logprobs.extend(response.logprobs)
                answer.usage.CopyFrom(response.usage)
                if not as_json and len(answers) == 1:
                    say(response.text, nl=False)
            if as_json:
                click.echo(json.dumps(_as_json(decision, answers)))
                return
            for number, answer in enumerate(answers, 1):
                say(f"[{number}] {answer.text}" if len(answers) > 1 else "")
                _tell_usage(decision, answer.usage, f", seed {answer.usage.seed}" if sampling.get("temperature") else "")

    asyncio.run(work())


def _as_json(decision: router_pb2.Decision, answers: Sequence[executor_pb2.GenerateResponse]) -> dict[str, Any]:
    """One answer's fields beside its decision; of several, a list."""
    told = [{"text": one.text} | {name: of for name, of in _fields(one).items() if name in ("usage", "logprobs")} for one in answers]
    return {"decision": _fields(decision)} | (told[0] if len(told) == 1 else {"answers": told})


def _fields(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def _tell_usage(decision: router_pb2.Decision, usage: executor_pb2.Usage, seed: str) -> None:
    adapters = f"{len(decision.adapters)} adapters" + (f" in {len(usage.stages)} stages" if usage.stages else "")
    decided = f" decision {decision.decision_id}" if decision.decision_id else ""
    click.echo(f"[{adapters}, {times_of(usage)}{seed}]{decided}", err=True)


def times_of(usage: executor_pb2.Usage) -> str:
    """Of an answer: its tokens, how long they took in all, and how long the first one did."""
    total_s = usage.total_us / 1e6
    speed = f" ({usage.completion_tokens / total_s:.0f} tokens/s)" if total_s else ""
    return f"{usage.completion_tokens} tokens in {total_s:.2f} s{speed}, the first after {usage.first_token_us / 1000:.0f} ms"


@click.command("report")
@click.argument("decision_id", metavar="DECISION")
@click.option("--success/--failure", default=None, help="Whether the answer was right.")
@click.option("--score", type=click.FloatRange(0, 1), help="How good it was, if you can say.")
@click.option("--input", "input_text", default="", help="What was asked.")
@click.option("--output", default="", help="What was answered.")
@click.option("--corrected", default="", help="After a failure: what would have been right; goes with --input.")
@click.option("--right", metavar="ADAPTER", default="", help="The adapter that would have been right; the learned strategy learns it.")
@click.option("--source", default="", help="Who says so, where several judge: what they say is weighted (SMOA_OUTCOME_SOURCES).")
@click.option("--revision", type=click.IntRange(0, 2**32 - 1), default=0, help="Of a correction: above that of what it corrects.")
@click.option("--withdraw", is_flag=True, help="Take back what was said, and say nothing in its place; goes with --revision.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@tenant_option
@router_option
def report_command(
    decision_id: str,
    success: bool | None,
    corrected: str,
    right: str,
    source: str,
    revision: int,
    withdraw: bool,
    as_json: bool,
    tenant: str,
    router: str,
    **texts: Any,
) -> None:
    """Say how the answer under DECISION turned out; `smoa generate` and `smoa route --count` print its id.

    The texts are optional. Given, they are kept as examples: a merge is tried on right answers first, and where answers fail an adapter
    can be learned from the corrected ones.
    """
    if (success is None) != withdraw:
        raise click.UsageError("say --success, --failure or --withdraw")
    if withdraw and not revision:
        raise click.UsageError("--withdraw goes with --revision, above that of what is taken back")
    if corrected and (success or not texts["input_text"]):
        raise click.UsageError("--corrected goes with --failure and --input: it is what should have been answered to what was asked")
    decision = router_pb2.Decision(decision_id=decision_id, tenant=tenant)

    async def work(client: SmoaClient) -> None:
        if success is None:
            return await client.withdraw(decision, revision=revision, source=source)
        named = (await find_adapter(client, right, tenant)).adapter_id if right else ""
        said: dict[str, Any] = {"corrected_output": corrected, "right_adapter_id": named, "source": source, "revision": revision, **texts}
        return await client.report(decision, success=success, **said)

    with_client(router, work)
    verdict = "withdrawal" if success is None else "success" if success else "failure"
    click.echo(json.dumps({"decision_id": decision_id, "outcome": verdict}) if as_json else f"{verdict} reported on {decision_id}")


@click.command("status")
@endpoints
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def status_command(router: str, executor: str, as_json: bool) -> None:
    """Show the executor's slots, residents and queue."""

    async def work() -> None:
        async with SmoaClient(router=router, executor=executor) as client:
            status = await client.status()
            if as_json:
                click.echo(json_line(status))
                return
            click.echo(
                f"base model {status.base_model_name} ({status.base_model[:12]}), {len(status.residents)}/{status.slots} slots in use"
            )
            click.echo(
                f"running {status.running}/{status.max_batch}, queued {status.queued}, events waiting for Kafka {status.spooled_events}"
            )
            found = f"in slots {status.adapter_hits}, in host memory {status.host_hits}, loaded from the store {status.store_loads}"
            load_ms = status.store_load_us / 1000 / max(1, status.store_loads)
            click.echo(f"adapters of requests: {found} ({load_ms:.1f} ms each), evictions {status.evictions}")
            click.echo(f"adapter bytes: {status.slot_bytes:,} in slots, {status.host_bytes:,} in host memory")
            click.echo(
                f"key/value cache: {status.cache_blocks_free:,} of {status.cache_blocks:,} blocks free, "
                f"prompt blocks found {status.prefix_hits:,} of {status.prefix_lookups:,}"
            )

    asyncio.run(work())
