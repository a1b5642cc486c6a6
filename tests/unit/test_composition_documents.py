"""Compositions as documents of the catalogue."""

from __future__ import annotations

from services.router.catalogue.compositions import Composition, composition_of, document_of


def test_what_a_newer_router_added_to_a_composition_stays() -> None:
    made = Composition(composition_id="1", tenant="public", name="a", root={}, created_at_us=1, parents=("b",))
    document = document_of(made)
    newer = document._replace(body={**document.body, "added_later": [1]})
    read = composition_of(newer)
    assert read.parents == ("b",)
    assert document_of(read) == newer
    assert composition_of(document_of(made)) == made
