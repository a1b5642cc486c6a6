"""Trees of adapters flatten to stages, exactly; what has no meaning is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.catalogue.composition import Node, PlannedStage, by_success, leaves, parse, plan
from services.router.catalogue.statistics import Statistics
from smoa.errors import InvalidArgument

Tree = dict[str, Any]


def node(strategy: str, *children: Tree) -> Tree:
    return {"strategy": f"COMPOSITION_STRATEGY_{strategy.upper()}", "children": list(children)}


def leaf(adapter_id: str, **more: Any) -> Tree:
    return {"adapterId": adapter_id, **more}


def nothing(name: str) -> Node:
    raise AssertionError(f"{name} is not nested")


def planned(tree: Tree, nested: Callable[[str], Node] = nothing) -> list[tuple[dict[str, float], int]]:
    return [(dict(stage.weights), stage.max_tokens) for stage in plan(parse(tree), "me", nested)]


def test_a_sum_of_sums_is_one_mixture() -> None:
    inner = node("hierarchical", leaf("b", weight=0.5), {"node": node("parallel", leaf("c"), leaf("a", weight=-1.0)), "weight": 0.25})
    assert planned(node("parallel", leaf("a"), {"node": inner, "weight": 2.0})) == [({"a": 0.5, "b": 1.0, "c": 0.5}, 0)]


def test_a_pipeline_in_a_pipeline_is_one_pipeline_with_its_limits() -> None:
    inner = node("sequential", leaf("b", max_tokens=1, maxTokens=7), leaf("c"))
    tree = node("sequential", {"node": node("parallel", leaf("a", weight=0.5)), "weight": 0.5, "maxTokens": 9}, {"node": inner}, leaf("a"))
    assert planned(tree) == [({"a": 0.25}, 9), ({"b": 1.0}, 7), ({"c": 1.0}, 0), ({"a": 1.0}, 0)]


def test_a_hierarchical_node_of_one_child_is_that_child() -> None:
    assert planned(node("hierarchical", {"node": node("sequential", leaf("a"), leaf("b"))})) == [({"a": 1.0}, 0), ({"b": 1.0}, 0)]


def test_other_compositions_are_put_in_their_place() -> None:
    trees = {"polite": parse(node("sequential", leaf("p"), {"composition": "short"})), "short": parse(node("parallel", leaf("s")))}
    tree = node("sequential", leaf("a"), {"composition": "polite"}, {"composition": "short", "weight": 0.5})
    assert planned(tree, trees.__getitem__) == [({"a": 1.0}, 0), ({"p": 1.0}, 0), ({"s": 1.0}, 0), ({"s": 0.5}, 0)]


def deep(levels: int) -> Tree:
    tree = node("parallel", leaf("a"))
    for _ in range(levels - 1):
        tree = node("parallel", {"node": tree})
    return tree


PAIR = {"node": node("sequential", leaf("a"), leaf("b"))}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "root.strategy: is not given; choose one of parallel, sequential, hierarchical"),
        (node("parallel"), "root: is a node without children; give every node at least one"),
        (node("parallel", {}), "root.children[0]: names nothing; give an adapter_id, a node or a composition"),
        (node("parallel", leaf("a", weight=5.0)), "root.children[0].weight: 5 is outside -4..4; leave it out for 1"),
        (node("parallel", leaf("a", weight=float("nan"))), "root.children[0].weight: nan is outside -4..4; leave it out for 1"),
        (node("parallel", leaf("a", maxTokens=-1)), "root.children[0].max_tokens: -1 is negative; leave it out for the request's"),
        (deep(9), "root: is deeper than 8; flatten it"),
        (
            node("parallel", leaf("c"), PAIR),
            "root: adds a pipeline to other children of a parallel node; make the sequence the outer node: it has no delta",
        ),
        (
            node("hierarchical", PAIR, leaf("c")),
            "root: adds a pipeline to other children of a hierarchical node; make the sequence the outer node: it has no delta",
        ),
        (node("sequential", {**PAIR, "weight": 0.5}), "root: weighs a pipeline by 0.5; weigh the adapters of its stages"),
        (node("sequential", *[leaf("a")] * 9), "root: has 9 stages, over 8; shorten the pipeline"),
        (node("parallel", *[leaf(str(i)) for i in range(33)]), "root: sums 33 adapters in stage 0; sum at most 32"),
        (
            node("sequential", *[{"node": node("parallel", *[leaf(str(i)) for i in range(30)])}] * 3),
            "root: has 90 adapters, over 64; split it",
        ),
        (node("parallel", leaf("a", weight=3.0), leaf("a", weight=2.0)), "root: gives a a weight of 5; stay within -4..4"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(tree: Tree, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        planned(tree)
    assert str(caught.value) == message


def test_a_cycle_is_named() -> None:
    trees = {"b": parse(node("sequential", {"composition": "c"})), "c": parse(node("sequential", {"composition": "b"}))}
    with pytest.raises(InvalidArgument) as caught:
        planned(node("sequential", {"composition": "b"}), trees.__getitem__)
    assert str(caught.value) == "root: nests itself: me -> b -> c -> b; break the cycle"
    with pytest.raises(InvalidArgument, match="nests itself: me -> me"):
        planned(node("sequential", {"composition": "me"}))


def test_depth_counts_what_is_nested() -> None:
    trees = {"deep": parse(deep(8))}
    with pytest.raises(InvalidArgument, match=r"^root: is deeper than 8 with what it nests; flatten it$"):
        planned(node("parallel", {"composition": "deep"}), trees.__getitem__)


def test_what_is_nested_often_is_flattened_once() -> None:
    asked: list[str] = []
    trees = {f"c{i}": parse(node("parallel", *[{"composition": f"c{i + 1}", "weight": 0.001}] * 200)) for i in range(5)}
    trees["c5"] = parse(node("parallel", *[leaf("a", weight=0.001)] * 200))

    def nested(name: str) -> Node:
        asked.append(name)
        return trees[name]

    ((weights, _),) = planned(node("parallel", {"composition": "c0"}), nested)
    assert weights == {"a": pytest.approx(0.2**6)}
    assert asked == [f"c{i}" for i in range(6)]
    with pytest.raises(InvalidArgument, match=r"^root: has 257 branches, over 256; split it$"):
        parse(node("parallel", *[leaf("a", weight=0.0)] * 257))


def test_depth_counts_for_what_was_flattened_before() -> None:
    trees = {"four": parse(deep(4))}
    tree = node("parallel", {"composition": "four"})
    for _ in range(4):
        tree = node("parallel", {"composition": "four"}, {"node": tree})
    with pytest.raises(InvalidArgument, match=r"^root: is deeper than 8 with what it nests; flatten it$"):
        planned(tree, trees.__getitem__)


sums = st.recursive(
    st.builds(lambda name, weight: leaf(name, weight=weight), st.sampled_from("abcd"), st.floats(-1, 1)),
    lambda children: st.builds(
        lambda strategy, parts, weight: {"node": node(strategy, *parts), "weight": weight},
        st.sampled_from(["parallel", "hierarchical"]),
        st.lists(children, min_size=1, max_size=3),
        st.floats(-1, 1),
    ),
    max_leaves=4,
)


def delta(tree: Tree, deltas: Mapping[str, float]) -> float:
    """The definition: a node adds the weighted deltas of its children."""
    own = deltas[tree["adapterId"]] if "adapterId" in tree else sum(delta(child, deltas) for child in tree["node"]["children"])
    return float(tree["weight"] * own)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(sums, min_size=1, max_size=3), st.integers(0, 10))
def test_a_flattened_sum_has_the_trees_delta(children: list[Tree], seed: int) -> None:
    rng = random.Random(seed)
    deltas = {name: rng.uniform(-1, 1) for name in "abcd"}
    ((weights, _),) = planned(node("parallel", *children))
    assert sum(weight * deltas[one] for one, weight in weights.items()) == pytest.approx(sum(delta(child, deltas) for child in children))
    assert {one.adapter_id for one in leaves(parse(node("parallel", *children)))} == set(weights)


def test_weights_follow_success_and_keep_their_sum() -> None:
    statistics = {"good": Statistics(outcomes=98, successes=89), "bad": Statistics(outcomes=98, successes=9), "new": Statistics()}
    stage = by_success(PlannedStage({"good": 0.5, "bad": 0.5, "new": -0.5}, 7), statistics)
    assert stage.max_tokens == 7
    assert stage.weights == pytest.approx({"good": 0.9, "bad": 0.1, "new": -0.5})
    assert by_success(PlannedStage({"good": 0.0}), statistics).weights == {"good": 0.0}
    assert by_success(PlannedStage({"good": 3.0, "bad": 3.0}), statistics).weights == pytest.approx({"good": 4.0, "bad": 4 / 9})
