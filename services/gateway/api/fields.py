"""Every field of OpenAI's requests, and what becomes of it: served, without effect, or refused. The documents' table is made of this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from smoa.errors import InvalidArgument

EFFECTLESS: Final = "it has no effect here"


@dataclass(frozen=True)
class Fields:
    """Of one kind of request."""

    path: str
    served: Mapping[str, str]
    """Name -> what is different from OpenAI's, if anything is."""
    ignored: Mapping[str, str]
    """Name -> why it may be left alone; an answer's `smoa-warning` header tells."""
    refused: Mapping[str, str]
    """Name -> what to do instead."""
    harmless: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Refused fields -> values that ask for nothing."""

    def check(self, body: Mapping[str, Any]) -> tuple[str, ...]:
        """What the caller should know of the body's fields.

        Raises:
            InvalidArgument: a field that is not served, or nobody knows.
        """
        warnings = []
        for name, value in body.items():
            if name in self.served or value is None or value in self.harmless.get(name, ()):
                continue
            if name in self.ignored:
                warnings.append(f"{name}: {self.ignored[name]}")
            elif name in self.refused:
                raise InvalidArgument(name, "is not served", self.refused[name])
            else:
                raise InvalidArgument(name[:80], "is unknown", f"the fields of {self.path} are in docs/reference/openai.md")
        return tuple(warnings)


_SMOA: Final = "`strategy`, `top_k`, `tags`, `task`, `session`, `new_topic`, `user`, `own_only`, `explain`, `tenant`, `base_model`"
_SAMPLING: Final = {
    "temperature": "default 0 (greedy), not 1: SMOA_GATEWAY_TEMPERATURE sets it",
    "top_p": "",
    "seed": "the same seed gives the same answer, whoever else is answered",
    "stop": "at most 8, of at most 64 characters each",
    "frequency_penalty": "",
    "presence_penalty": "",
    "logit_bias": "at most 1,024 tokens of the base model's own vocabulary",
    "n": "at most 8",
    "stream": "",
    "stream_options": "`include_usage`; `include_obfuscation` has no effect",
    "user": "a pseudonym; the learned strategy learns what is right for it",
    "top_k": "of vLLM",
    "min_p": "of vLLM",
    "repetition_penalty": "of vLLM",
    "ignore_eos": "of vLLM",
    "model": "`smoa-auto` routes; an adapter's name or id, or a composition's name, is used; a base model's name means no adapter",
    "smoa": f"our own: {_SMOA}",
}
_IGNORED: Final = {
    "metadata": "nothing is stored here",
    "store": "nothing is stored here",
    "service_tier": "there is one",
    "prompt_cache_key": "prompts are cached without it",
    "prompt_cache_retention": "prompts are cached without it",
    "prompt_cache_options": "prompts are cached without it",
}
_TOOLS: Final = "send a request without tools; an agent calls tools itself and sends what they said as a user's turn"
_TEXT_ONLY: Final = "only text is served"

CHAT: Final = Fields(
    "/v1/chat/completions",
    served={
        **_SAMPLING,
        "messages": "roles `system`, `developer` (as `system`), `user`, `assistant`; texts, or parts that are texts; the user's last",
        "max_completion_tokens": "default: as many as the executor's limit and the context leave",
        "max_tokens": "the same",
        "logprobs": "",
        "top_logprobs": "0 to 20",
        "safety_identifier": "as `user`",
    },
    ignored={
        **_IGNORED,
        "reasoning_effort": "the models that are served do not reason apart",
        "verbosity": "adapters have a length of their own",
        "prediction": "nothing is predicted ahead",
        "parallel_tool_calls": "there are no tools",
    },
    refused={
        "tools": _TOOLS,
        "tool_choice": _TOOLS,
        "functions": _TOOLS,
        "function_call": _TOOLS,
        "response_format": "only `text` is served; ask for the form in the prompt, or use an adapter that was trained for it",
        "modalities": _TEXT_ONLY,
        "audio": _TEXT_ONLY,
        "web_search_options": "search yourself, and send what was found as a user's turn",
        "moderation": "moderate before or after",
    },
    harmless={
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
    },
)
COMPLETIONS: Final = Fields(
    "/v1/completions",
    served={
        **_SAMPLING,
        "prompt": "one text; it is a user's turn of the base model's chat template, as adapters are trained on",
        "max_tokens": "default: as many as the executor's limit and the context leave (OpenAI's: 16)",
        "logprobs": "0 to 20",
    },
    ignored={},
    refused={
        "best_of": "ask for `n` answers and choose",
        "echo": "put the prompt before the answer yourself",
        "suffix": "the models that are served do not fill in",
    },
    harmless={"best_of": (1,), "echo": (False,), "suffix": ("",)},
)
RESPONSES: Final = Fields(
    "/v1/responses",
    served={
        "model": _SAMPLING["model"],
        "input": "a text, or items of type `message` with texts",
        "instructions": "a system turn before the input",
        "max_output_tokens": "default: as many as the executor's limit and the context leave",
        "temperature": _SAMPLING["temperature"],
        "top_p": "",
        "stream": "typed events; `stream_options` has no effect",
        "user": _SAMPLING["user"],
        "safety_identifier": "as `user`",
        "smoa": _SAMPLING["smoa"],
    },
    ignored={
        **_IGNORED,
        "stream_options": EFFECTLESS,
        "reasoning": "the models that are served do not reason apart",
        "truncation": "a conversation that does not fit is refused",
        "include": EFFECTLESS,
        "parallel_tool_calls": "there are no tools",
        "max_tool_calls": "there are no tools",
    },
    refused={
        "tools": _TOOLS,
        "tool_choice": _TOOLS,
        "previous_response_id": "nothing is stored here; send the whole conversation as `input`",
        "conversation": "nothing is stored here; send the whole conversation as `input`, and name it in `smoa.session`",
        "background": "wait for the answer, or stream it",
        "background_options": "wait for the answer, or stream it",
        "access_programs": "a caller's rights come with its key",
        "image": _TEXT_ONLY,
        "prompt": "fill the template in yourself",
        "text": "only the format `text` is served",
        "top_logprobs": "use /v1/chat/completions",
        "context_management": "send what should count",
        "moderation": "moderate before or after",
    },
    harmless={
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "background": (False,),
        "text": ({"format": {"type": "text"}}, {}),
        "top_logprobs": (0,),
    },
)
FEEDBACK: Final = Fields(
    "/v1/feedback",
    served={
        "id": "of an answer, or of its decision",
        "success": "whether it was right",
        "score": "how good it was, 0 to 1",
        "source": "who says so, where several judge: `user`, `reviewer`",
        "revision": "of a correction: above that of what it corrects, from 1 on",
        "withdrawn": "what was said is taken back; with a `revision`",
        "corrected_output": "what would have been right",
        "input": "what was asked; with `output`, an example to learn from",
        "output": "what was answered",
        "right_adapter_id": "the adapter that would have been right",
        "tenant": "whose decision it was, for who has several",
    },
    ignored={},
    refused={},
)
EVERY: Final = (CHAT, COMPLETIONS, RESPONSES, FEEDBACK)
