"""Conversations to tokens and loss masks, by a template of what stands before and after each turn.

Only what the assistant says is learned, with the token that ends its turn. Template and content are tokenised apart:
a special token spelled out in the content stays text, so data cannot forge a turn. Jinja templates are not run; a
template is a table, one of `TEMPLATES` or a JSON file of the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from openwafer.base.errors import ConfigError, DataError


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Turn(_Record):
    """What stands around a turn's content; `end` is learned with the assistant's, `after` is not."""

    before: str
    end: str = ""
    after: str = ""


class Template(_Record):
    """A way to write conversations. Every name in `special` is one token of the tokenizer."""

    turns: dict[str, Turn]
    begin: str = ""
    special: list[str] = []


def _by_role(before: str, end: str, after: str) -> dict[str, Turn]:
    return {
        role: Turn(before=before.replace("ROLE", role), end=end, after=after)
        for role in ("system", "user", "assistant")
    }


TEMPLATES: Mapping[str, Template] = {
    # Source: OpenAI's ChatML, as in the chat templates of Hugging Face's documentation.
    "chatml": Template(
        turns=_by_role("<|im_start|>ROLE\n", "<|im_end|>", "\n"), special=["<|im_start|>", "<|im_end|>"]
    ),
    # Source: Meta, "Llama 3 model card and prompt formats".
    "llama3": Template(
        begin="<|begin_of_text|>",
        turns=_by_role("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", ""),
        special=["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    # Source: model card of HuggingFaceH4/zephyr-7b-beta.
    "zephyr": Template(turns=_by_role("<|ROLE|>\n", "</s>", "\n"), special=["</s>"]),
}
"""Templates by name."""


def load_template(name: str) -> Template:
    """The template of that name, or in the JSON file of that name.

    Raises:
        ConfigError: neither, or the file is no template.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{name!r} is neither a template ({', '.join(TEMPLATES)}) nor a JSON file")
    try:
        return Template.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}") from error


class ChatEncoder:
    """Turns conversations into tokens and masks.

    Raises:
        DataError: the tokenizer lacks one of the template's special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template):
        missing = [token for token in template.special if tokenizer.token_to_id(token) is None]
        if missing:
            raise DataError(
                f"the tokenizer has no token {', '.join(missing)}, which the template needs: name a --tokenizer that "
                "has, or another --template"
            )
        self._template = template
        self._plain = tokenizer
        self._marked = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens, self._marked.encode_special_tokens = True, False

    def encode(self, messages: Sequence[Mapping[str, Any]], where: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids [n] and mask [n], 1 where a token is to be learned.

        Args:
            messages: {"role": ..., "content": ...} in order.
            where: what errors call the conversation.

        Raises:
            DataError: an unknown role, or content that is no text.
        """
        ids: list[int] = []
        mask: list[int] = []

        def add(text: str, learned: bool, tokenizer: Tokenizer) -> None:
            tokens = tokenizer.encode(text, add_special_tokens=False).ids if text else []
            ids.extend(tokens)
            mask.extend([int(learned)] * len(tokens))

        add(self._template.begin, False, self._marked)
        for message in messages:
            role, content = _message(message, where)
            if role not in self._template.turns:
                raise DataError(f"{where}: role {role!r}; the template has {', '.join(self._template.turns)}")
            turn, learned = self._template.turns[role], role == "assistant"
            add(turn.before, False, self._marked)
            add(content, learned, self._plain)
            add(turn.end, learned, self._marked)
            add(turn.after, False, self._marked)
        return np.array(ids, np.int64), np.array(mask, np.int64)


def _message(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise DataError(f"{where}: a message is {{role, content}} in text, got {str(message)[:60]}")
    return message["role"], message["content"]


def parse_conversation(line: str, where: str) -> list[Mapping[str, Any]]:
    """The messages of one JSON line: {"messages": [...]}, or {"prompt": ..., "completion": ...}.

    Raises:
        DataError: neither.
    """
    try:
        record = json.loads(line.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {line.strip()[:60]!r}; one JSON object per line") from error
    if isinstance(record, dict) and isinstance(record.get("messages"), list) and record["messages"]:
        return record["messages"]
    if isinstance(record, dict) and {"prompt", "completion"} <= set(record):
        return [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["completion"]},
        ]
    fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
    raise DataError(f"{where}: neither messages nor prompt and completion; there: {fields or 'nothing'}")
