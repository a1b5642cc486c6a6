"""Chat templates of public models, letter by letter, and small tokenizers of the same make, with the special tokens that they write."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEMPLATES: Final = Path(__file__).with_name("chat_templates")
_CORPUS: Final = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face. The quick brown fox jumps over the lazy dog; "
    "my card was charged twice? Refund it, please: 12,345.67 EUR.\n\n\tdef answer(question): return 'no'  # done\n",
    "system user assistant model INST Today Date Cutting Knowledge Über straße naïve 你好 世界 end im start of turn tool think",
)


@dataclass(frozen=True, kw_only=True)
class ChatModel:
    """What a chat model's folder holds beside its weights."""

    make: str
    """How its tokenizer goes about text: `gpt2`, `llama3`, `llama2`, `metaspace` or `gemma`."""
    special: tuple[str, ...]
    bos: str = ""
    eos: str
    config_eos: str = ""
    """Token that `config.json` names; default: `eos`."""
    generation_eos: tuple[str, ...] = ()
    """Tokens that `generation_config.json` names, if there is one."""
    end: str
    """Token with which the template ends a turn."""
    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""
    rstrip: bool = False
    """Special tokens take the white space behind them."""
    system: bool = True
    """The template takes a system turn."""


_IM: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HEADERS: Final = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
_SENTENCEPIECE: Final = ("<unk>", "<s>", "</s>")
_GEMMA: Final = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_PHI: Final = (*_SENTENCEPIECE, "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
_LLAMA: Final = ChatModel(
    make="llama3",
    special=_HEADERS,
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    config_eos="<|end_of_text|>",
    generation_eos=("<|end_of_text|>", "<|eot_id|>"),
    end="<|eot_id|>",
)
_LLAMA_2: Final = ChatModel(make="llama2", special=_SENTENCEPIECE, bos="<s>", eos="</s>", end="</s>")
_CHATML: Final = ChatModel(make="gpt2", special=_IM, bos="<|im_start|>", eos="<|im_end|>", end="<|im_end|>")
CHAT_MODELS: Final = {
    "llama3": _LLAMA,
    "llama3.2": replace(_LLAMA, generation_eos=()),
    "mistral": replace(_LLAMA_2, system=False),
    "mistral3": replace(_LLAMA_2, make="metaspace", special=(*_SENTENCEPIECE, "[INST]", "[/INST]")),
    "zephyr": _LLAMA_2,
    "smollm2": _CHATML,
    "generation": replace(_CHATML, bos=""),
    "qwen2.5": replace(_CHATML, make="llama3", bos="", generation_eos=("<|im_end|>", "<|endoftext|>")),
    "qwen3": replace(
        _CHATML, make="llama3", bos="", config_eos="<|endoftext|>", plain=("<tool_call>", "</tool_call>", "<think>", "</think>")
    ),
    "gemma": ChatModel(make="gemma", special=_GEMMA, bos="<bos>", eos="<eos>", end="<end_of_turn>", plain=("\n\n", "\n\n\n"), system=False),
    "phi3": ChatModel(
        make="llama2", special=_PHI, bos="<s>", eos="<|endoftext|>", generation_eos=("<|endoftext|>", "<|end|>"), end="<|end|>", rstrip=True
    ),
}
"""Name of a file in `chat_templates/` -> the model. `llama3.2`, `qwen2.5` and `qwen3` are without what they write of tools."""


def make_tokenizer(model: ChatModel) -> Tokenizer:
    """A BPE tokenizer of about 600 tokens that treats spaces, prefixes and special tokens as the model's own does."""
    by_bytes = model.make in ("gpt2", "llama3")
    tokenizer = Tokenizer(models.BPE(byte_fallback=not by_bytes, unk_token=None if by_bytes else "<unk>", fuse_unk=True))
    if model.make == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif model.make == "llama3":
        pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif model.make == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif model.make == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    alphabet = pre_tokenizers.ByteLevel.alphabet() if by_bytes else ["▁"]
    special = [] if by_bytes else ["<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet, special_tokens=special)
    # Sentencepiece merges within words; here the trainer would merge over them, as nothing splits the text before.
    tokenizer.train_from_iterator(_CORPUS if by_bytes else [word for text in _CORPUS for word in text.split()] * 2, trainer)
    raw: dict[str, Any] = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = raw["model"]["vocab"]
    if not by_bytes:
        for byte in range(256):
            vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    tokenizer = Tokenizer.from_str(json.dumps(raw | {"added_tokens": []}))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False, rstrip=model.rstrip) for name in model.special])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in model.plain])
    if by_bytes:
        tokenizer.decoder = decoders.ByteLevel()
    else:
        parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*parts, *([] if model.make == "gemma" else [decoders.Strip(" ", 1, 0)])])
    if model.bos:
        tokens = [(model.bos, tokenizer.token_to_id(model.bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{model.bos} $A", pair=f"{model.bos} $A $B", special_tokens=tokens)
    return tokenizer


def write_chat_files(folder: Path, name: str, *, jinja: bool = True) -> Path:
    """Tokenizer, eos ids and template of a model (in a file of its own, or in `tokenizer_config.json`); returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model, template = CHAT_MODELS[name], (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = make_tokenizer(model)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": model.eos}
    if model.bos:
        config["bos_token"] = model.bos
    if jinja:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": tokenizer.token_to_id(model.config_eos or model.eos)}))
    if model.generation_eos:
        ids = [tokenizer.token_to_id(end) for end in model.generation_eos]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return folder
