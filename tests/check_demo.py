"""Holds `build/demo.json` to what the demo promises: `python -m tests.check_demo build/demo.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def problems(result: dict) -> list[str]:  # type: ignore[type-arg]
    """What the measurements fall short of; empty when all is well."""
    match, events = result["exact_match"], result["events"]
    rules = {
        "at least 120 queries": result["queries"] >= 120,
        "route_top1 >= 0.85": result["route_top1"] >= 0.85,
        "routed >= 0.9 x oracle": match["routed"] >= 0.9 * match["oracle"],
        "oracle >= 0.6": match["oracle"] >= 0.6,
        "base near 0": match["base"] <= 0.05,
        "controls of at least 30 queries, a fair base of 16": result["control_queries"] >= 30 and result["told_queries"] >= 16,
        "routed over 1.5 x the fair base": match["routed"] > 1.5 * result["base_told_in_words"],
        "random near 0": match["random"] <= 0.05,
        "uniform under half of routed": match["uniform"] < 0.5 * match["routed"],
        "every event counted once": events["counted"] == events["sent"],
        "failing and unneeded decoys pruned": result["pruned"] == ["garden_task", "recipe_cuisine", "sports_result", "star_sign"],
        "near-duplicates merged": [sorted(pair) for pair in result["merged"]]
        == [["med_department", "med_department-copy"], ["support_intent", "support_intent-copy"]],
        "no useful adapter pruned": result["useful_pruned"] == [],
        "under 4 minutes, 12 without AVX-512": result["seconds"] < (240 if result["avx512"] else 720),
    }
    return [name for name, holds in rules.items() if not holds]


if __name__ == "__main__":
    found = problems(json.loads(Path(sys.argv[1]).read_text()))
    print("the demo falls short of: " + ", ".join(found) if found else "the demo shows what it must")
    raise SystemExit(1 if found else 0)
