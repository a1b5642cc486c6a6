"""What an imported adapter must be: the checks of a file's manifest, on what its owner says of it. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.router.catalogue.port import Vector
from services.router.catalogue.records import AdapterRecord
from smoa.adapter import check_labels, check_texts, granularity_of
from smoa.embedding.views import Views
from smoa.errors import InvalidArgument
from smoa.identifiers import check_ulid
from smoa.limits import MAX_EXAMPLE_CHARACTERS, MAX_EXAMPLES, MAX_MODULES, MAX_RANK, MAX_VERSION, MIN_EXAMPLES
from smoa.store import AdapterStore

MAX_IMPORT: Final = 1000


class ImportCounts(NamedTuple):
    """Of an import: adapters that were not there before, and those whose file is not in the store."""

    added: int
    missing: int


@dataclass(frozen=True)
class Imported:
    """An adapter as its owner describes it; `vector` is None when it is to be made of the examples."""

    record: AdapterRecord
    vector: Vector | None


def check_imported(imported: Sequence[Imported], views: Views) -> list[Imported]:
    """The same with granularities, and vectors of length one.

    Raises:
        InvalidArgument: naming the first adapter and field that is wrong.
    """
    if not 1 <= len(imported) <= MAX_IMPORT:
        raise InvalidArgument("adapters", f"holds {len(imported)}", f"send 1 to {MAX_IMPORT:,} a request")
    return [_checked(one, f"adapters[{place}]", views) for place, one in enumerate(imported)]


def _checked(one: Imported, where: str, views: Views) -> Imported:
    record = one.record
    try:
        check_ulid(record.adapter_id)
        AdapterStore.key(record.digest)
        check_labels("", record.name, record.tags)
        check_texts("modules", record.modules, MAX_MODULES)
        check_texts("base_model", (record.base_model,), 1)
        granularity = granularity_of(record.parameter_count)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}.{error.field}", error.problem, error.remedy) from error
    limits = (
        ("version", 1 <= record.version <= MAX_VERSION, f"{record.version} is outside 1..{MAX_VERSION}", "count versions from 1"),
        ("kind", record.kind in ("lora", "lora_xs"), "is not set", "say lora or lora_xs"),
        ("specialization", record.specialization != "unspecified", "is not set", "say which, or general"),
        ("base_model", bool(record.base_model), "is empty", "send the fingerprint that the executor's GetStatus shows"),
        ("rank", 1 <= record.rank <= MAX_RANK, f"{record.rank} is outside 1..{MAX_RANK}", "send the rank in the manifest"),
        ("parameter_count", record.parameter_count > 0, f"{record.parameter_count} is not positive", "count its trained numbers"),
        ("file_bytes", record.file_bytes >= 0, f"{record.file_bytes} is negative", "send the file's size, or 0"),
    )
    for field, good, problem, remedy in limits:
        if not good:
            raise InvalidArgument(f"{where}.{field}", problem, remedy)
    record = dataclasses.replace(record, granularity=granularity)
    return Imported(record, None if one.vector is None else views.completed(one.vector, f"{where}.vector", "examples"))


def checked_examples(examples: Sequence[str]) -> list[str]:
    """The distinct ones; raises InvalidArgument for too few, too many, or one that is empty or too long."""
    unique = list(dict.fromkeys(examples))
    if not MIN_EXAMPLES <= len(unique) <= MAX_EXAMPLES:
        raise InvalidArgument("examples", f"holds {len(unique)} distinct inputs", f"give {MIN_EXAMPLES} to {MAX_EXAMPLES}")
    if any(not example.strip() or len(example) > MAX_EXAMPLE_CHARACTERS for example in unique):
        raise InvalidArgument("examples", f"holds an empty input or one over {MAX_EXAMPLE_CHARACTERS:,} characters", "give typical inputs")
    return unique
