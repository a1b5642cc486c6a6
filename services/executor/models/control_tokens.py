"""Control tokens (`<|im_end|>`, `<s>`) come from the chat template only, never out of a text that somebody wrote.

A tokenizer looks for the texts of its control tokens in whatever it is given. Here every one of them is loaded under a secret name that no
text holds, so that its public name is text like any other, also in the vocabulary. In a rendered prompt, the public names that the template
wrote become the secret ones; those in a turn's content are marked before the rendering, and stay as they are. Nothing else about the
tokenizer changes: without such names in a content, the ids are what transformers gives.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from services.executor.models.json_file import read_json
from smoa.errors import FailedPrecondition, InvalidArgument

_MARK: Final = "\udcff"
"""Half of a surrogate pair: no text that can be sent holds one, and it is gone before the text is tokenised."""
_SPACE: Final = "\u2581"
_NOTHING: Final = r"(?!)"
"""A pattern that is nowhere."""


class ControlTokens:
    """A tokenizer's control tokens: their ids, and their public and secret names."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._opens, self._closes = f"\U0010fffe{secrets.token_hex(16)}.", "\U0010ffff"
        self.ids = dict(ids)
        """Public name -> id."""
        self.secret = {name: f"{self._opens}{token}{self._closes}" for name, token in ids.items()}
        """Public name -> secret one."""
        self._public = re.compile(_longest_of(ids) or _NOTHING)
        self._begins = re.compile(f"(?={self._public.pattern})")
        self._beginnings = {name[:length] for name in ids for length in range(1, len(name) + 1)}

    def guarded(self, content: str) -> str:
        """A content in which no control token's name begins: a mark stands after the first character of each.

        So it does in what may become a name with the text that follows, when a template joins contents.

        Raises:
            InvalidArgument: half of a surrogate pair.
        """
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument("messages", "hold half of a surrogate pair", "send whole characters") from error
        starts = {found.start() for found in self._begins.finditer(content)}
        end = len(content.rstrip())
        tails = range(max(0, end - max(map(len, self.ids), default=0)), end)
        starts |= {at for at in tails if content[at:end] in self._beginnings}
        return "".join(f"{character}{_MARK}" if at in starts else character for at, character in enumerate(content)) if starts else content

    def revealed(self, rendered: str) -> str:
        """A rendered prompt as the tokenizer takes it: control tokens under their secret names, and no marks."""
        return self._public.sub(lambda found: self.secret[found[0]], rendered).replace(_MARK, "")

    def through_first(self, revealed: str) -> str:
        """A revealed text through its first control token; empty if there is none."""
        at = revealed.find(self._opens)
        return revealed[: revealed.index(self._closes, at) + 1] if at >= 0 else ""

    def from_last(self, revealed: str) -> str:
        """A revealed text from its last control token on, or all of it: as much as the tokens of what follows it depend on."""
        return revealed[max(revealed.rfind(self._opens), 0) :]


def _longest_of(names: Collection[str]) -> str:
    """A pattern of the longest of some names, as a trie: hundreds of alternatives one after the other would take 5 us a character."""
    rests: dict[str, list[str]] = {}
    for name in filter(None, names):
        rests.setdefault(name[0], []).append(name[1:])
    branches = [re.escape(first) + _longest_of(rest) for first, rest in rests.items()]
    return f"(?:{'|'.join(branches)}){'?' if '' in names else ''}" if branches else ""


def without_marks(text: str) -> str:
    """Of a sentence that a template wrote about guarded contents."""
    return text.replace(_MARK, "")


def load_tokenizer(folder: Path, ends: Collection[int]) -> tuple[Tokenizer, ControlTokens]:
    """A folder's tokenizer with its control tokens under secret names. Added tokens of the ids `ends` are control tokens too.

    Raises:
        FailedPrecondition: no `tokenizer.json`, or one whose control tokens cannot be told from text.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        remedy = "save it as one: transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        raise FailedPrecondition(f"base_model: {folder} has no tokenizer.json; {remedy}")
    raw: dict[str, Any] = read_json(path)
    try:
        _configure(raw, read_json(folder / "tokenizer_config.json"), read_json(folder / "config.json"))
        ids = {token["content"]: token["id"] for token in raw.get("added_tokens") or [] if token["special"] or token["id"] in ends}
        control = ControlTokens(ids)
        _rename(raw, control.secret)
        tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(raw))
    except FailedPrecondition:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        problem = f"its tokenizer.json is not understood ({type(error).__name__}: {error})"
        raise FailedPrecondition(f"base_model: {folder}: {problem}; save it again with transformers' AutoTokenizer") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for name, token_id in ids.items():
        if tokenizer.encode(control.secret[name], add_special_tokens=False).ids != [token_id]:
            problem = f"its tokenizer.json does not give {name!r} the id {token_id}"
            raise FailedPrecondition(f"base_model: {folder}: {problem}; save it again with transformers' AutoTokenizer")
    return tokenizer, control


def _configure(raw: dict[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Change a `tokenizer.json` by `tokenizer_config.json`, as transformers 5 does.

    That file decides how added tokens are found, and Llama's class has a pre-tokenizer and a decoder of its own.
    """
    added = {token["id"]: token for token in raw.get("added_tokens") or []}
    for token_id, declared in (settings.get("added_tokens_decoder") or {}).items():
        if int(token_id) not in added:
            problem = f"its tokenizer.json lacks {declared['content']!r}, which tokenizer_config.json adds"
            raise FailedPrecondition(f"base_model: {problem}; save it again with transformers' AutoTokenizer")
        known = added[int(token_id)]
        known |= {name: declared[name] for name in ("lstrip", "rstrip", "normalized", "single_word") if name in declared}
        known["special"] |= bool(declared.get("special"))
    name = settings.get("tokenizer_class") or ""
    if config.get("model_type") == "llama" and name.removesuffix("Fast") == "LlamaTokenizer" and raw["model"]["type"] == "BPE":
        spaced = settings.get("add_prefix_space") is not False
        scheme = "never" if not spaced else "always" if settings.get("legacy") else "first"
        raw["normalizer"] = None
        raw["pre_tokenizer"] = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False}
        raw["model"] |= {"fuse_unk": True, "byte_fallback": True}
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if spaced else []
        spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
        raw["decoder"] = {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]}


def _rename(raw: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens in a `tokenizer.json`: among the added ones, and in the vocabulary, so that no text is merged into one."""
    for token in raw.get("added_tokens") or []:
        if token["content"] in names:
            # Found wherever the template writes it: a name that was normalised, or had to stand alone, would be missed beside other text.
            token |= {"content": names[token["content"]], "special": True, "normalized": False, "single_word": False}
    model = raw["model"]
    if isinstance(model["vocab"], dict):
        for public, secret in names.items():
            if public in model["vocab"]:
                model["vocab"][secret] = model["vocab"].pop(public)
    else:  # Unigram: pieces and their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [(tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)) for merge in model["merges"]]
        model["merges"] = [list(pair) for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
