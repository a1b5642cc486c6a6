"""Which versions of one thing to try against each other: pure. A younger one is meant to be better, and may not be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass
from itertools import pairwise

from services.optimizer.policy.library_policy import AdapterView, Rules


@dataclass(frozen=True)
class Supersede:
    """Try the younger against the older: the one that does better stays."""

    younger: AdapterView
    older: AdapterView

    @property
    def reason(self) -> str:
        """In words."""
        same = "name" if self.younger.name == self.older.name else "examples"
        return f"{self.younger.name} is a younger adapter of the same {same} as {self.older.name} ({self.older.uses} uses)"


def supersedes(adapters: Iterable[AdapterView], rules: Rules, decided: Container[tuple[str, str]] = ()) -> list[Supersede]:
    """The youngest pairs of versions, at most one of each thing.

    Versions are a tenant's adapters for one base model that have the same name, or the same examples. Whether the younger is better is
    shown on the older one's queries: one that nobody asks can show nothing.

    Args:
        adapters: The active ones.
        rules: Of which the least number of uses counts.
        decided: Pairs of ids, lower and higher, that were tried, or are to be left as they are.
    """
    same: defaultdict[tuple[object, ...], list[AdapterView]] = defaultdict(list)
    for one in adapters:
        if not one.protected:
            whose = (one.tenant, one.shared, one.base_model)
            same[*whose, "name", one.name].append(one)
            if one.examples_digest and one.age_s >= rules.min_age_s:  # twins are rather merged, as soon as they may
                same[*whose, "examples", one.examples_digest].append(one)
    found, taken = list[Supersede](), set[str]()
    for versions in same.values():
        by_age = sorted(versions, key=lambda one: (one.age_s, one.adapter_id))
        for younger, older in pairwise(by_age):
            pair = (min(younger.adapter_id, older.adapter_id), max(younger.adapter_id, older.adapter_id))
            if older.recent_uses >= rules.min_merge_uses and not taken.intersection(pair) and pair not in decided:
                found.append(Supersede(younger, older))
                taken.update(pair)
                break
    return found
