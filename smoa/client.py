"""The async client: one object over the router and an executor, every call with a deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Unpack

import grpc

from smoa.access.channels import Channels, ConnectionSettings
from smoa.changes_client import ChangesClient
from smoa.errors import FailedPrecondition
from smoa.executor_calls import CHANNEL_OPTIONS, OWN_CONNECTION, ExecutorCalls
from smoa.library_client import LibraryClient
from smoa.limits import AS_MANY_TOKENS, MAX_EXAMPLE_CHARACTERS, MAX_QUERY_CHARACTERS
from smoa.sampling_options import SamplingOptions
from smoa.turns import Turn, said
from smoa.v1 import (
    changes_pb2_grpc,
    executor_pb2,
    executor_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    registry_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
)
from smoa.v1 import common_pb2 as common


@dataclass(frozen=True)
class Answer:
    """What was answered, by which decision and on which executor."""

    text: str
    decision: router_pb2.Decision
    usage: executor_pb2.Usage
    executor: str
    client: SmoaClient
    query: str
    """What the user said last."""

    async def report(
        self,
        *,
        success: bool,
        score: float | None = None,
        corrected_output: str = "",
        right_adapter_id: str = "",
        source: str = "",
        revision: int = 0,
    ) -> None:
        """Say how it turned out; durable when this returns. A right answer becomes an example. `source` and `revision` are as in
        `SmoaClient.report`.

        Raises:
            grpc.aio.AioRpcError: the router's status.
        """
        await self.client.report(
            self.decision,
            success=success,
            score=score,
            input_text=self.query[:MAX_EXAMPLE_CHARACTERS],
            output=self.text[:MAX_EXAMPLE_CHARACTERS],
            corrected_output=corrected_output,
            right_adapter_id=right_adapter_id,
            source=source,
            revision=revision,
        )

    async def withdraw(self, *, revision: int = 1, source: str = "") -> None:
        """Take back what was said of it.

        Raises:
            grpc.aio.AioRpcError: the router's status.
        """
        await self.client.withdraw(self.decision, revision=revision, source=source)


class SmoaClient(LibraryClient, ChangesClient):
    """Route, generate, report, keep the library, and decide what is planned for it.

        async with SmoaClient(router="127.0.0.1:50051") as smoa:
            answer = await smoa.chat("my card was charged twice")
            await answer.report(success=answer.text == "billing")

    Or each step by itself:

        async with SmoaClient(router="127.0.0.1:50051", executor="127.0.0.1:50052") as smoa:
            decision = await smoa.route("my card was charged twice")
            text, usage = await smoa.generate("my card was charged twice", decision)
            await smoa.report(decision, success=text == "billing")

    Where a `prompt` is taken, so is a conversation: `messages`, the last one the user's, on which it is routed.

    Every method raises `grpc.aio.AioRpcError` with the server's status.
    """

    def __init__(
        self,
        *,
        router: str | None = None,
        executor: str | None = None,
        timeout_s: float = 30.0,
        connection: ConnectionSettings | None = None,
    ) -> None:
        """`connection` says by what it is known to the services; left out, the environment does (SMOA_TOKEN_FILE, SMOA_TLS_CA, ...).

        Raises:
            InvalidArgument: a token that would cross a network in the clear, or files of a certificate that do not go together.
            FailedPrecondition: one that cannot be read.
        """
        self._timeout_s = timeout_s
        self._made_by = Channels(connection)
        self._channels: list[grpc.aio.Channel] = []
        self._calls: ExecutorCalls | None = None
        if router is not None:
            channel = self._channel(router)
            self.router: router_pb2_grpc.RouterServiceAsyncStub = router_pb2_grpc.RouterServiceStub(channel)
            self.registry: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(channel)
            self.changes: changes_pb2_grpc.ChangeServiceAsyncStub = changes_pb2_grpc.ChangeServiceStub(channel)
            self.feedback: feedback_pb2_grpc.FeedbackServiceAsyncStub = feedback_pb2_grpc.FeedbackServiceStub(channel)
            self._calls = ExecutorCalls(
                self.router, lambda address: self._made_by.to(address, (*CHANNEL_OPTIONS, OWN_CONNECTION)), timeout_s
            )
        self._chosen_executors: dict[str, executor_pb2_grpc.ExecutorServiceAsyncStub] | None = {} if executor is None else None
        if executor is not None:
            self.executor: executor_pb2_grpc.ExecutorServiceAsyncStub = executor_pb2_grpc.ExecutorServiceStub(self._channel(executor))

    def _channel(self, target: str) -> grpc.aio.Channel:
        channel = self._made_by.to(target, CHANNEL_OPTIONS)
        self._channels.append(channel)
        return channel

    async def __aenter__(self) -> SmoaClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channels."""
        if self._calls is not None:
            await self._calls.close()
        for channel in self._channels:
            await channel.close()

    async def route(
        self,
        query: str = "",
        *,
        base_model: str = "",
        tenant: str = "public",
        strategy: common.RoutingStrategy | str = common.ROUTING_STRATEGY_HYBRID,
        top_k: int | None = None,
        score_threshold: float | None = None,
        tags: Sequence[str] = (),
        task_id: str = "",
        model: str = "",
        composition: str = "",
        look: bool = False,
        explain: bool = False,
        messages: Sequence[Turn] = (),
        vector: Sequence[float] = (),
        turns: Sequence[str] = (),
        session: str = "",
        new_topic: bool = False,
        user: str = "",
        own_only: bool = False,
    ) -> router_pb2.Decision:
        """Which adapters answer the query, or what the user said last in `messages`, or its `vector`; or those of the `model`
        (an adapter or a composition), or the composition, that is named. Without a base model, it is the only one that executors run.

        With `look` it is not counted, and has no id: nothing can be reported on it. With `explain` it tells of near candidates, too. What
        was said before, in `messages` or in `turns`, or in the `session` that the router remembers, says what the query is about if it does
        not say so itself; with a `new_topic`, it does not count. The learned strategy learns what is right for a `user`.
        With `own_only`, none that other tenants share is chosen.
        """
        query, before = said(query, messages)
        request = router_pb2.RouteRequest(
            tenant=tenant,
            base_model=base_model,
            query=query,
            strategy=strategy,
            top_k=top_k,
            score_threshold=score_threshold,
            tags=tags,
            task_id=task_id,
            model=model,
            composition=composition,
            look=look,
            explain=explain,
            vector=vector,
            turns=turns or before,
            session=session,
            new_topic=new_topic,
            own_only=own_only,
            user=user,
        )
        return await self.router.Route(request, timeout=self._timeout_s)

    async def chat(
        self,
        messages: str | Sequence[Turn],
        *,
        tenant: str = "public",
        max_tokens: int = AS_MANY_TOKENS,
        model: str = "",
        base_model: str = "",
        session: str = "",
        user: str = "",
        tags: Sequence[str] = (),
        task_id: str = "",
        most_adapters: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Answer:
        """Route, generate on whichever executor is there, and return what was said; `report` on it says how it turned out.

        Args:
            messages: What the user says, or a conversation whose last turn is theirs.
            tenant: Whose adapters.
            max_tokens: Of the answer; -1: as many as the executor's limit and the context leave.
            model: Id or name of an adapter, or name of a composition, to use instead of choosing.
            base_model: Its name or fingerprint, where executors run several.
            session: Name of the conversation, by which the router remembers what it is about.
            user: Who asks, a pseudonym.
            tags: Hints.
            task_id: Hint, and what counts are kept by.
            most_adapters: Of the decision.
            sampling: See `SamplingOptions`; one answer.

        Raises:
            Unavailable: no executor has told the router of itself.
            grpc.aio.AioRpcError: a service's status; of an executor that is away before it has said something, another's.
        """
        turns: Sequence[Turn] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        query, before = said("", turns)
        decision = await self.route(
            query[:MAX_QUERY_CHARACTERS],
            base_model=base_model,
            tenant=tenant,
            model=model,
            turns=before,
            session=session,
            user=user,
            tags=tags,
            task_id=task_id,
            top_k=most_adapters,
        )
        request = executor_pb2.GenerateRequest(messages=turns, max_tokens=max_tokens, **sampling)
        assert self._calls is not None, "made without a router"
        text, usage, executor = "", executor_pb2.Usage(), ""
        async with aclosing(self._calls.answer(request, decision, timeout_s=self._timeout_s)) as pieces:
            async for executor, piece in pieces:  # noqa: B007
                text += piece.text
                usage = piece.usage
        return Answer(text, decision, usage, executor, self, query)

    async def stream(
        self,
        prompt: str = "",
        adapters: Iterable[common.WeightedAdapter] = (),
        *,
        tenant: str = "public",
        decision_id: str = "",
        max_tokens: int = 64,
        stages: Iterable[common.Stage] = (),
        executor: str = "",
        messages: Sequence[Turn] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncIterator[executor_pb2.GenerateResponse]:
        """Generate under the adapters, or through the stages of a composition; an answer's last message carries its usage.

        A client that was made without an executor calls the one at `executor`, which a decision names.
        """
        request = executor_pb2.GenerateRequest(
            tenant=tenant,
            prompt=prompt,
            adapters=adapters,
            decision_id=decision_id,
            max_tokens=max_tokens,
            stages=stages,
            messages=messages,
            **sampling,
        )
        async for response in self._executor_at(executor).Generate(request, timeout=self._timeout_s):
            yield response

    def _executor_at(self, address: str) -> executor_pb2_grpc.ExecutorServiceAsyncStub:
        if self._chosen_executors is None:
            return self.executor
        if not address:
            raise FailedPrecondition("executor: the decision names none, and this client was made without one; give SmoaClient an executor")
        if address not in self._chosen_executors:
            self._chosen_executors[address] = executor_pb2_grpc.ExecutorServiceStub(self._channel(address))
        return self._chosen_executors[address]

    async def generate(
        self, prompt: str = "", decision: router_pb2.Decision | None = None, *, max_tokens: int = 64, messages: Sequence[Turn] = ()
    ) -> tuple[str, executor_pb2.Usage]:
        """The whole greedy answer under a decision, and its usage."""
        text, usage = "", executor_pb2.Usage()
        chosen = decision or router_pb2.Decision(tenant="public")
        async for response in self.carry_out(prompt, chosen, max_tokens=max_tokens, messages=messages):
            text += response.text
            usage = response.usage
        return text, usage

    def carry_out(
        self,
        prompt: str,
        decision: router_pb2.Decision,
        *,
        max_tokens: int = 64,
        messages: Sequence[Turn] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncIterator[executor_pb2.GenerateResponse]:
        """Stream the answer under a decision: its mixture, or the stages of the composition that it names."""
        return self.stream(
            prompt,
            () if decision.stages else decision.adapters,
            tenant=decision.tenant,
            decision_id=decision.decision_id,
            max_tokens=max_tokens,
            stages=decision.stages,
            executor=decision.executor,
            messages=messages,
            **sampling,
        )

    async def score(
        self,
        prompt: str,
        completion: str,
        adapters: Sequence[common.WeightedAdapter] = (),
        tenant: str = "public",
        messages: Sequence[Turn] = (),
    ) -> list[float]:
        """Natural log-probability of each token of a given completion under a mixture."""
        return (await self.score_all(prompt, [completion], adapters, tenant, messages))[0]

    async def score_all(
        self,
        prompt: str,
        completions: Sequence[str],
        adapters: Sequence[common.WeightedAdapter] = (),
        tenant: str = "public",
        messages: Sequence[Turn] = (),
    ) -> list[list[float]]:
        """`score` of each of several completions; the prompt is computed once."""
        request = executor_pb2.ScoreRequest(tenant=tenant, prompt=prompt, completions=completions, adapters=adapters, messages=messages)
        return [list(one.token_logprobs) for one in (await self.executor.Score(request, timeout=self._timeout_s)).scores]

    async def status(self) -> executor_pb2.GetStatusResponse:
        """Slots, residents and queue of the executor."""
        return await self.executor.GetStatus(executor_pb2.GetStatusRequest(), timeout=self._timeout_s)

    async def report(
        self,
        decision: router_pb2.Decision,
        *,
        success: bool,
        score: float | None = None,
        input_text: str = "",
        output: str = "",
        corrected_output: str = "",
        right_adapter_id: str = "",
        source: str = "",
        revision: int = 0,
    ) -> None:
        """Say how a decision turned out; durable when this returns.

        `input_text` and `output` of a success become an example to try merges on; a failure's `corrected_output`, one to learn from. The
        learned strategy learns which adapter would have been right. Where several judge, `source` says who does. What a source says with a
        higher `revision` takes the place of what it said before.
        """
        outcome = feedback_pb2.Outcome(
            decision_id=decision.decision_id,
            tenant=decision.tenant,
            success=success,
            score=score,
            input=input_text,
            output=output,
            corrected_output=corrected_output,
            right_adapter_id=right_adapter_id,
            source=source,
            revision=revision,
        )
        await self.feedback.ReportOutcome(feedback_pb2.ReportOutcomeRequest(outcome=outcome), timeout=self._timeout_s)

    async def withdraw(self, decision: router_pb2.Decision, *, revision: int = 1, source: str = "") -> None:
        """Take back what a source said of a decision with a lower `revision`; durable when this returns."""
        outcome = feedback_pb2.Outcome(
            decision_id=decision.decision_id, tenant=decision.tenant, source=source, revision=revision, withdrawn=True
        )
        await self.feedback.ReportOutcome(feedback_pb2.ReportOutcomeRequest(outcome=outcome), timeout=self._timeout_s)
