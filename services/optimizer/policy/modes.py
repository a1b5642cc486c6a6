"""Whether a change that is proposed is carried out, or waits for a person. Pure."""

from __future__ import annotations

from typing import Final, Literal, get_args

from smoa.identifiers import chosen_word

Mode = Literal["observe", "approve", "auto"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)


def checked_mode(word: str) -> Mode:
    """The mode of a setting.

    Raises:
        InvalidArgument: there is none of this name.
    """
    return chosen_word(word, MODES, "SMOA_OPTIMIZER_MODE")


def goes_on(mode: Mode, *, approved: bool, library_age_s: float, observe_first_s: float) -> bool:
    """Whether a change is carried out: under `auto` every one, but of a library that is new only what a person approved, as under
    `approve`; under `observe` none.
    """
    if mode == "observe":
        return False
    return approved or (mode == "auto" and library_age_s >= observe_first_s)
