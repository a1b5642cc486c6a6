"""A base model's own chat template: where its files keep it, and rendering it as transformers does.

Written after `transformers/utils/chat_template_utils.py`, whose import takes seconds that serving does not need: the same sandbox, options,
filters and variables, so that the text is the same to the letter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import jinja2.ext
import jinja2.nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.executor.models.json_file import read_json
from smoa.errors import FailedPrecondition, InvalidArgument

SETTING: Final = "SMOA_EXECUTOR_CHAT_TEMPLATE"


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote, for training masks; it leaves the text as it is."""

    tags = {"generation"}  # noqa: RUF012  jinja's own declaration

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        """The block's body, in place of the block."""
        next(parser.stream)
        # A scope of its own, as the macro has that transformers makes of it: what is set inside is not seen outside.
        return [jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True))]


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    """Some templates write the day: their prompts differ from day to day, with transformers too."""
    return datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without jinja's escapes of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplate:
    """A compiled chat template and the special tokens that it may write."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile it. `special_tokens`: variable to text, such as `bos_token` to `<s>`.

        Raises:
            jinja2.TemplateSyntaxError: it is no template.
        """
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(self, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """The text of the turns, each with `role` and `content`; with the opening of an answer if `add_generation_prompt`.

        Raises:
            Exception: whatever the template raises: it is a program.
        """
        return self._template.render(
            messages=[dict(turn) for turn in turns],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
        )


def load_chat_template(folder: Path, special_tokens: Mapping[str, str], override: str = "") -> ChatTemplate | None:
    """The template of the file `override`, else the folder's own, else None: the model is no chat model.

    Raises:
        InvalidArgument: the file `override` cannot be read, or is no template.
        FailedPrecondition: the folder's own is no template, or it has several of which none is the default.
    """
    if override:
        try:
            return ChatTemplate(Path(override).read_text(encoding="utf-8"), special_tokens)
        except (OSError, UnicodeDecodeError, jinja2.TemplateSyntaxError) as error:
            raise InvalidArgument(SETTING, f"{override} is no chat template ({error})", "give a file with a Jinja template") from error
    source = _source(folder)
    try:
        return None if source is None else ChatTemplate(source, special_tokens)
    except jinja2.TemplateSyntaxError as error:
        problem = f"its chat template does not compile ({error.message}, line {error.lineno})"
        raise FailedPrecondition(f"base_model: {folder}: {problem}; give another one with {SETTING}") from error


def _source(folder: Path) -> str | None:
    """As transformers: `chat_template.jinja` goes before the text, or the list of named texts, in `tokenizer_config.json`."""
    file = folder / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FailedPrecondition(f"base_model: {file} is not UTF-8 ({error}); give another one with {SETTING}") from error
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if template is None or isinstance(template, str):
        return template
    listed = template if isinstance(template, list) else []
    named: dict[str, object] = {str(one.get("name")): one.get("template") for one in listed if isinstance(one, dict)}
    if isinstance(template, dict):
        named = template
    if "default" not in named:
        problem = f"its chat templates are {', '.join(named) or 'no texts'}, and none is called default"
        raise FailedPrecondition(f"base_model: {folder}: {problem}; choose one with {SETTING}")
    return str(named["default"])


def special_tokens_of(folder: Path) -> dict[str, str]:
    """Texts of the tokens that `tokenizer_config.json` names (`bos_token`, ...), or in older models `special_tokens_map.json`."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_json(folder / "special_tokens_map.json")
    named = {key: value.get("content") if isinstance(value, dict) else value for key, value in config.items() if key.endswith("_token")}
    return {key: value for key, value in named.items() if isinstance(value, str)}
