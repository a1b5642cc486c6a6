"""Generated libraries: adapters for jobs and customers, known by example sentences, and queries like those.

A job has a vocabulary of its own, so has a customer; a sentence of twenty words draws from both and from words that everybody uses. All
adapters of one job are near neighbours, which only their customers' words tell apart. The vectors are those that the router's own embedder
would make of the sentences (mean of token vectors, and what they look like), worked out from sums over words because that is a thousand
times faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smoa.embedding.port import Vector
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.surface import DIMENSION, Ends, Sizes, count_words, vector_of, vectors_of
from smoa.embedding.views import beside, centroids, joined
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

JOB_WORDS, CUSTOMER_WORDS, COMMON_WORDS = 40, 20, 300
FROM_JOB, FROM_CUSTOMER, FROM_COMMON = 12, 4, 4
EXAMPLES = 5
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Library:
    """Adapters by their job and customer, and their vectors [adapters, 384]."""

    words: NDArray[np.str_]
    job_words: Ids
    customer_words: Ids
    common: Ids
    jobs: Ids
    customers: Ids
    vectors: Vector

    def sentences(self, adapters: Ids, seed: int, count: int = 1, *, customer_words: bool = True) -> Ids:
        """Words [adapters, count, 20] of new sentences for each adapter; 16 without the customer's."""
        made = _sentences(self, self.jobs[adapters], self.customers[adapters], count, np.random.default_rng(seed))
        return made if customer_words else np.delete(made, slice(FROM_JOB, FROM_JOB + FROM_CUSTOMER), 2)

    def texts(self, adapters: Ids, seed: int) -> list[str]:
        """A query for each of the adapters."""
        return [" ".join(self.words[words]) for words in self.sentences(adapters, seed)[:, 0]]


def generate(
    adapters: int, seed: int = 0, jobs: int | None = None, customers: int | None = None, made: Callable[[int], None] = lambda more: None
) -> tuple[Library, Callable[[str], Vector]]:
    """A library of so many adapters: a job for every 500 of them, at least 20, a customer for every 200, or as many as are said.

    `made` is told how many more there are. Returned, too, is what makes the vector of a text.
    """
    embedder = StaticEmbedder()
    words, sums = embedder.vocabulary()
    counts, lengths = count_words(words.tolist()), np.char.str_len(words)
    rng = np.random.default_rng(seed)
    jobs, customers = jobs or max(20, adapters // 500), customers or max(10, adapters // 200)
    library = Library(
        words,
        rng.integers(0, len(words), (jobs, JOB_WORDS)),
        rng.integers(0, len(words), (customers, CUSTOMER_WORDS)),
        rng.integers(0, len(words), COMMON_WORDS),
        rng.integers(0, jobs, adapters),
        rng.integers(0, customers, adapters),
        np.empty((adapters, embedder.dimension + DIMENSION), np.float32),
    )
    for start in range(0, adapters, 2000):
        chunk = np.arange(start, min(start + 2000, adapters))
        library.vectors[chunk] = embed(library.sentences(chunk, seed=start + 1, count=EXAMPLES), sums, counts, lengths)
        made(len(chunk))
    return library, lambda text: joined(embedder.vector_of(text), vector_of(text))


def embed(sentences: Ids, sums: Vector, counts: Vector, lengths: Ids) -> Vector:
    """Unit centroids [adapters, 384] of sentences [adapters, count, words], as the registry makes them."""
    flat = sentences.reshape(-1, sentences.shape[2])
    blanks = flat.shape[1] - 1
    sizes = Sizes(lengths[flat].sum(1) + blanks, flat.shape[1], blanks, 0)
    looks = vectors_of(counts[flat].sum(1), sizes, Ends.of("a"))
    return centroids(beside(sums[flat].sum(1), looks).reshape(*sentences.shape[:2], -1))


def _sentences(library: Library, jobs: Ids, customers: Ids, count: int, rng: np.random.Generator) -> Ids:
    shape = (len(jobs), count)
    own = library.job_words[jobs[:, None, None], rng.integers(0, JOB_WORDS, (*shape, FROM_JOB))]
    theirs = library.customer_words[customers[:, None, None], rng.integers(0, CUSTOMER_WORDS, (*shape, FROM_CUSTOMER))]
    common = library.common[rng.integers(0, COMMON_WORDS, (*shape, FROM_COMMON))]
    return np.concatenate([own, theirs, common], 2)


def imported(library: Library, number: int, adapter_id: str, base_model: str) -> registry_pb2.ImportedAdapter:
    """One of a library's adapters, as it is imported: a vector and what a manifest would say, of weights that nobody has."""
    adapter = registry_pb2.Adapter(
        adapter_id=adapter_id,
        version=1,
        digest=f"{number:064x}",
        name=f"job-{library.jobs[number]}-customer-{library.customers[number]}",
        kind=common.ADAPTER_KIND_LORA_XS,
        specialization=common.SPECIALIZATION_TASK,
        base_model=base_model,
        rank=8,
        modules=["q_proj", "v_proj"],
        parameter_count=3840,
        file_bytes=9000,
        tags=[f"domain-{library.jobs[number] % 50}"],
    )
    return registry_pb2.ImportedAdapter(adapter=adapter, vector=library.vectors[number].tolist())
