"""The bytes the engines send: OpenAI chat and completions as vLLM 0.32 writes them, `/generate` as TGI 3 does.

Field order and the many nulls are copied from the real answers, because a proxy in front must cope with just those.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

SYSTEM_FINGERPRINT = "prelude-embedded-engine"
_MARK = "\0text\0"


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact token counts of one request, all choices together."""

    prompt_tokens: int
    completion_tokens: int

    def openai(self) -> dict[str, Any]:
        """The `usage` object."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": total,
            "completion_tokens": self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished sequence of an answer."""

    text: str
    num_tokens: int
    reason: str
    """`stop` or `length`."""


def _sse(value: object) -> bytes:
    return b"data: " + _dumps(value) + b"\n\n"


def _dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _template(event: bytes) -> tuple[bytes, bytes]:
    """An event split where the token's text goes, so that a token costs one concatenation, not one serialisation."""
    before, after = event.split(json.dumps(_MARK)[1:-1].encode())
    return before, after


class Wire(ABC):
    """One answer's bytes. Streams: `opening` with the first token, `token` each, `ending` a choice, `closing` once."""

    stream_type = "text/event-stream; charset=utf-8"
    merges_tokens = True
    """Whether tokens that could not be sent in time go out as one event (vLLM's API server) or as one each (TGI)."""

    @abstractmethod
    def opening(self, index: int) -> bytes:
        """Before the first token of choice `index`."""

    @abstractmethod
    def token(self, index: int, position: int, text: bytes) -> bytes:
        """Tokens of choice `index`, the first at `position`; `text` needs no escaping."""

    @abstractmethod
    def ending(self, index: int, position: int, text: bytes, choice: Choice) -> bytes:
        """The last event of choice `index`, with the text of its last token."""

    @abstractmethod
    def closing(self, usage: Usage) -> bytes:
        """After all choices."""

    @abstractmethod
    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """The answer of a request that does not stream."""


class _OpenAI(Wire):
    def __init__(self, answer_id: str, model: str, *, include_usage: bool) -> None:
        self._id = answer_id
        self._model = model
        self._created = int(time.time())
        self._include_usage = include_usage
        self._templates: dict[int, tuple[bytes, bytes]] = {}

    def token(self, index: int, position: int, text: bytes) -> bytes:
        """One event, without a `usage`."""
        del position
        template = self._templates.get(index)
        if template is None:
            template = self._templates[index] = _template(_sse(self._chunk(self._piece(index, _MARK, None))))
        return template[0] + text + template[1]

    def ending(self, index: int, position: int, text: bytes, choice: Choice) -> bytes:
        """The event with the finish reason; after a stop token its text is empty."""
        del position
        chunk = self._chunk(self._piece(index, text.decode(), choice.reason))
        if not self._include_usage:
            chunk["system_fingerprint"] = SYSTEM_FINGERPRINT
        return _sse(chunk)

    def closing(self, usage: Usage) -> bytes:
        """The usage if it was asked for, then `[DONE]`."""
        done = b"data: [DONE]\n\n"
        if not self._include_usage:
            return done
        last = {"usage": usage.openai(), "system_fingerprint": SYSTEM_FINGERPRINT}
        return _sse(self._chunk(None) | last) + done

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """One JSON object."""
        return _dumps(
            {
                "id": self._id,
                "object": self._whole_object,
                "created": self._created,
                "model": self._model,
                "choices": [self._whole_choice(index, choice) for index, choice in enumerate(choices)],
                "service_tier": None,
                "system_fingerprint": SYSTEM_FINGERPRINT,
                "usage": usage.openai() | {"prompt_tokens_details": None, "completion_tokens_details": None},
                "kv_transfer_params": None,
            }
        )

    def _chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": self._chunk_object,
            "created": self._created,
            "model": self._model,
            "choices": [] if choice is None else [choice],
        }

    _whole_object: str
    _chunk_object: str

    @abstractmethod
    def _piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]: ...

    @abstractmethod
    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]: ...


class ChatWire(_OpenAI):
    """`/v1/chat/completions`."""

    _whole_object = "chat.completion"
    _chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> bytes:
        """The role comes with the first token."""
        delta = {"role": "assistant", "content": ""}
        return _sse(self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None}))

    def _piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        piece = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": reason}
        return piece | ({"token_ids": None} if reason is None else {"stop_reason": None, "token_ids": None})

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None, "tool_calls": None, "reasoning": None}
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": choice.reason,
            "stop_reason": None,
        }


class CompletionWire(_OpenAI):
    """`/v1/completions`."""

    _whole_object = "text_completion"
    _chunk_object = "text_completion"

    def opening(self, index: int) -> bytes:
        """Nothing."""
        del index
        return b""

    def _piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None}

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return self._piece(index, choice.text, choice.reason)


class TgiWire(Wire):
    """TGI's `/generate` and `/generate_stream`: `data:` without a space, no `[DONE]`."""

    stream_type = "text/event-stream"
    merges_tokens = False

    def __init__(self, *, prompt_tokens: int, details: bool, as_list: bool) -> None:
        """`as_list`: the compatibility route `/` answers with a list of one."""
        self._prompt_tokens = prompt_tokens
        self._details = details
        self._as_list = as_list

    def opening(self, index: int) -> bytes:
        """Nothing."""
        del index
        return b""

    def token(self, index: int, position: int, text: bytes) -> bytes:
        """Positions count from 1."""
        del index
        return b'data:{"index":%d,"token":%b,"generated_text":null,"details":null}\n\n' % (
            position + 1,
            _tgi_token(text),
        )

    def ending(self, index: int, position: int, text: bytes, choice: Choice) -> bytes:
        """Carries the whole text, and the only token count."""
        del index
        details = self._finish(choice) | {"input_length": self._prompt_tokens}
        return b'data:{"index":%d,"token":%b,"generated_text":%b,"details":%b}\n\n' % (
            position + 1,
            _tgi_token(text, is_eos=choice.reason == "stop"),
            _dumps(choice.text),
            _dumps(details),
        )

    def closing(self, usage: Usage) -> bytes:
        """Nothing: the last token's event was the end."""
        del usage
        return b""

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """Only the first choice (`best_of` keeps one)."""
        del usage
        answer: dict[str, Any] = {"generated_text": choices[0].text}
        if self._details:
            answer["details"] = self._finish(choices[0]) | {"prefill": [], "tokens": []}
        return _dumps([answer] if self._as_list else answer)

    def _finish(self, choice: Choice) -> dict[str, Any]:
        reason = "eos_token" if choice.reason == "stop" else "length"
        return {"finish_reason": reason, "generated_tokens": choice.num_tokens, "seed": None}


def _tgi_token(text: bytes, *, is_eos: bool = False) -> bytes:
    special = b"true" if is_eos else b"false"
    shown = b"</s>" if is_eos else text
    return b'{"id":%d,"text":"%b","logprob":-0.5,"special":%b}' % (2 if is_eos else 100 + len(text), shown, special)
