"""A composition's tree, and the pipeline of mixtures that carries it out. Pure.

A weighted sum of weighted sums is a weighted sum, and a pipeline of pipelines is a pipeline: so every tree that has a meaning flattens,
exactly, to a list of stages, each one mixture. What does not is a pipeline inside a sum: it has no delta to add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from services.router.catalogue.statistics import Statistics
from smoa.errors import InvalidArgument
from smoa.limits import MAX_STAGE_ADAPTERS, MAX_STAGES, MAX_WEIGHT

Strategy = Literal["parallel", "sequential", "hierarchical"]
STRATEGIES = ("parallel", "sequential", "hierarchical")
MAX_DEPTH, MAX_BRANCHES, MAX_ADAPTERS = 8, 256, 64


@dataclass(frozen=True, kw_only=True)
class Child:
    """A branch: exactly one of an adapter, a node or the name of another composition."""

    adapter_id: str = ""
    node: Node | None = None
    composition: str = ""
    weight: float = 1.0
    max_tokens: int = 0
    """Where it is a stage: most tokens of its text; 0 is the request's."""


@dataclass(frozen=True)
class Node:
    """How its children are applied, and which they are."""

    strategy: Strategy
    children: tuple[Child, ...]


@dataclass(frozen=True)
class PlannedStage:
    """One mixture: adapter id -> weight, in the order of the tree."""

    weights: Mapping[str, float]
    max_tokens: int = 0


def parse(raw: Mapping[str, object]) -> Node:
    """A tree from the JSON of `smoa.v1.CompositionNode`, each branch checked by itself.

    Raises:
        InvalidArgument: an unknown strategy, a node without children, a branch that is nothing or weighs what it must not, too deep.
    """
    root = _parsed_node(raw, "root", 1)
    if (count := sum(1 for _ in leaves(root))) > MAX_BRANCHES:
        raise InvalidArgument("root", f"has {count} branches, over {MAX_BRANCHES}", "split it")
    return root


def _parsed_node(raw: Mapping[str, object], field: str, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise InvalidArgument("root", f"is deeper than {MAX_DEPTH}", "flatten it")
    strategy = str(raw.get("strategy", "")).removeprefix("COMPOSITION_STRATEGY_").lower()
    if strategy not in STRATEGIES:
        raise InvalidArgument(f"{field}.strategy", "is not given", f"choose one of {', '.join(STRATEGIES)}")
    children = cast(list[Mapping[str, object]], raw.get("children", []))
    if not children:
        raise InvalidArgument(field, "is a node without children", "give every node at least one")
    parsed = tuple(_parsed_child(child, f"{field}.children[{number}]", depth) for number, child in enumerate(children))
    return Node(cast(Strategy, strategy), parsed)


def _parsed_child(raw: Mapping[str, object], field: str, depth: int) -> Child:
    weight, max_tokens = float(cast(float, raw.get("weight", 1.0))), int(cast(int, raw.get("maxTokens", 0)))
    if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        raise InvalidArgument(f"{field}.weight", f"{weight:g} is outside -{MAX_WEIGHT:g}..{MAX_WEIGHT:g}", "leave it out for 1")
    if max_tokens < 0:
        raise InvalidArgument(f"{field}.max_tokens", f"{max_tokens} is negative", "leave it out for the request's")
    if "node" in raw:
        node = _parsed_node(cast(Mapping[str, object], raw["node"]), f"{field}.node", depth + 1)
        return Child(node=node, weight=weight, max_tokens=max_tokens)
    adapter_id, composition = str(raw.get("adapterId", "")), str(raw.get("composition", ""))
    if not adapter_id and not composition:
        raise InvalidArgument(field, "names nothing", "give an adapter_id, a node or a composition")
    return Child(adapter_id=adapter_id, composition=composition, weight=weight, max_tokens=max_tokens)


def leaves(node: Node) -> Iterator[Child]:
    """Every branch of the tree that is not a node."""
    for child in node.children:
        if child.node is None:
            yield child
        else:
            yield from leaves(child.node)


def plan(root: Node, name: str, nested: Callable[[str], Node]) -> tuple[PlannedStage, ...]:
    """The stages that carry out composition `name`; `nested` looks up the trees of those it nests.

    Raises:
        InvalidArgument: a pipeline in a sum, a cycle, or more than the limits.
    """
    stages, _ = _Flattening(nested).stages(root, (name,), 1)
    if (count := sum(len(stage.weights) for stage in stages)) > MAX_ADAPTERS:
        raise InvalidArgument("root", f"has {count} adapters, over {MAX_ADAPTERS}", "split it")
    for number, stage in enumerate(stages):
        if len(stage.weights) > MAX_STAGE_ADAPTERS:
            raise InvalidArgument("root", f"sums {len(stage.weights)} adapters in stage {number}", f"sum at most {MAX_STAGE_ADAPTERS}")
        for adapter_id, weight in stage.weights.items():
            if abs(weight) > MAX_WEIGHT:
                raise InvalidArgument("root", f"gives {adapter_id} a weight of {weight:g}", f"stay within -{MAX_WEIGHT:g}..{MAX_WEIGHT:g}")
    return tuple(stages)


class _Flattening:
    """One walk. A composition that is nested in many places is flattened once, so the work is that of the trees' sizes."""

    def __init__(self, nested: Callable[[str], Node]) -> None:
        self._nested = nested
        self._known: dict[str, tuple[list[PlannedStage], int]] = {}

    def stages(self, node: Node, names: tuple[str, ...], depth: int) -> tuple[list[PlannedStage], int]:
        """Stages and height of a node `depth` deep, inside the compositions `names`."""
        if depth > MAX_DEPTH:
            raise InvalidArgument("root", f"is deeper than {MAX_DEPTH} with what it nests", "flatten it")
        branches: list[tuple[Child, list[PlannedStage]]] = []
        height = 1
        for child in node.children:
            found, below = self._branch(child, names, depth)
            branches.append((child, found))
            height = max(height, 1 + below)
        if node.strategy == "sequential" or (node.strategy == "hierarchical" and len(branches) == 1):
            joined = [stage for child, found in branches for stage in _weighted(child, found)]
            if len(joined) > MAX_STAGES:
                raise InvalidArgument("root", f"has {len(joined)} stages, over {MAX_STAGES}", "shorten the pipeline")
            return joined, height
        sums: dict[str, float] = {}
        for child, found in branches:
            if len(found) > 1:
                raise InvalidArgument(
                    "root",
                    f"adds a pipeline to other children of a {node.strategy} node",
                    "make the sequence the outer node: it has no delta",
                )
            for adapter_id, weight in found[0].weights.items():
                sums[adapter_id] = sums.get(adapter_id, 0.0) + child.weight * weight
        return [PlannedStage(sums)], height

    def _branch(self, child: Child, names: tuple[str, ...], depth: int) -> tuple[list[PlannedStage], int]:
        if child.node is not None:
            return self.stages(child.node, names, depth + 1)
        if not child.composition:
            return [PlannedStage({child.adapter_id: 1.0})], 0
        if child.composition in names:
            raise InvalidArgument("root", f"nests itself: {' -> '.join((*names, child.composition))}", "break the cycle")
        if child.composition not in self._known:
            self._known[child.composition] = self.stages(self._nested(child.composition), (*names, child.composition), depth + 1)
        found, height = self._known[child.composition]
        if depth + height > MAX_DEPTH:
            raise InvalidArgument("root", f"is deeper than {MAX_DEPTH} with what it nests", "flatten it")
        return found, height


def _weighted(child: Child, stages: list[PlannedStage]) -> list[PlannedStage]:
    if len(stages) > 1:
        if child.weight != 1.0:
            raise InvalidArgument("root", f"weighs a pipeline by {child.weight:g}", "weigh the adapters of its stages")
        return stages
    weights = {adapter_id: child.weight * weight for adapter_id, weight in stages[0].weights.items()}
    return [PlannedStage(weights, child.max_tokens or stages[0].max_tokens)]


def by_success(stage: PlannedStage, statistics: Mapping[str, Statistics]) -> PlannedStage:
    """The stage with its weights times each adapter's measured success, scaled to the same absolute sum, or less to stay in bounds.

    Success is the mean of a Beta posterior from an even prior: an adapter that nobody has judged counts as half successful.
    """
    factor = {one: (statistics[one].successes + 1) / (statistics[one].outcomes + 2) for one in stage.weights}
    before = sum(map(abs, stage.weights.values()))
    after = sum(abs(weight) * factor[one] for one, weight in stage.weights.items())
    most = max((abs(weight) * factor[one] for one, weight in stage.weights.items()), default=0.0)
    scale = min(before / after, MAX_WEIGHT / most) if after else 1.0
    return PlannedStage({one: weight * factor[one] * scale for one, weight in stage.weights.items()}, stage.max_tokens)
