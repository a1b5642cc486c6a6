"""Tokenizer of a model folder and the one prompt format that training and serving share."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from services.executor.models.config import ModelConfig


class PromptTokenizer:
    """Text to ids and back. A chat model gets a user turn without a system text; any other gets `<input>` and a newline."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._chat = self._tokenizer.token_to_id("<|im_start|>") is not None
        end = self._tokenizer.token_to_id("<|im_end|>")
        self.eos_ids = frozenset(config.eos_ids) | ({end} if end is not None else frozenset())

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a query as the model sees it."""
        wrapped = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" if self._chat else f"{text}\n"
        return self.ids(wrapped)

    def completion_ids(self, text: str) -> list[int]:
        """Ids of an answer and the token that ends it."""
        return self.ids(text) + sorted(self.eos_ids)[-1:]

    def ids(self, text: str) -> list[int]:
        """Ids of a text as it stands."""
        # As a batch: unlike `encode` it releases the interpreter's lock, for which a long text's caller may run it on a thread.
        return list(self._tokenizer.encode_batch([text], add_special_tokens=False)[0].ids)

    def text(self, ids: list[int]) -> str:
        """Text of ids, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
