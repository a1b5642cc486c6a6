"""Options of `smoa generate` that say how an answer is picked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import click

from smoa.sampling_options import SamplingOptions

_TYPES: Final[dict[str, Any]] = {
    "temperature": (float, "0 is greedy, which is the default."),
    "top_p": (float, "Only the most probable tokens that have this much of the probability together."),
    "top_k_tokens": (int, "Only the so many most probable tokens (--top-k counts adapters)."),
    "min_p": (float, "Only tokens with this share of the most probable one's probability."),
    "repetition_penalty": (float, "Over 1: against tokens that the prompt or the answer holds."),
    "presence_penalty": (float, "Over 0: against tokens that the answer holds."),
    "frequency_penalty": (float, "Over 0: against tokens, the more often the answer holds them."),
    "logprobs": (int, "Tell the tokens' log-probabilities, and of so many alternatives; goes with --json."),
    "n": (int, "So many answers."),
    "seed": (int, "The same seed gives the same answer; random by default."),
}


class _Bias(click.ParamType):
    name = "TOKEN=BIAS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        token, _, bias = str(value).partition("=")
        try:
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not a token's number and what is added to its logit, such as 42=-100", param, ctx)


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that `sampling_of` reads."""
    options = [click.option(f"--{name.replace('_', '-')}", name, type=of, help=text) for name, (of, text) in _TYPES.items()]
    options += [
        click.option("--logit-bias", type=_Bias(), multiple=True, help="What is added to a token's logit, -100 to 100; may repeat."),
        click.option("--ignore-eos", is_flag=True, default=None, help="Go on to --max-tokens or a --stop."),
        click.option("--stop", multiple=True, help="Text that ends the answer; may repeat."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def sampling_of(options: Mapping[str, Any]) -> SamplingOptions:
    """Those of a command's options that say how to pick, as the client takes them; what was not given is left out."""
    given = {name: options[name] for name in (*_TYPES, "ignore_eos", "stop") if options[name] not in (None, ())}
    if "top_k_tokens" in given:
        given["top_k"] = given.pop("top_k_tokens")
    if options["logit_bias"]:
        given["logit_bias"] = dict(options["logit_bias"])
    return cast(SamplingOptions, given)
