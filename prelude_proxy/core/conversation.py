"""What a payload says and how it is laid out, whichever endpoint it came to. Total: no payload makes it raise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from zlib import crc32

from prelude_proxy.core.domain import Endpoint, RequestFacts
from prelude_proxy.core.parse import iter_text
from prelude_proxy.core.text import Glimpse

_MAX_TURNS: Final = 32
"""Messages at the end of a conversation whose roles and lengths are read."""
_MAX_PARTS: Final = 64
"""Content parts of one message that are read."""
_FINGERPRINT_CHARS: Final = 180
"""Characters of a text that identify it; training rows keep at least as many of every message."""


class Conversation:
    """A request's text, in the order the engine reads it."""

    system: str = ""
    text: str = ""
    """The last message, or the prompt of a completion: what is to be answered."""
    last_role: str = "user"
    num_user: int = 0
    num_assistant: int = 0
    num_tool: int = 0
    last_answer_chars: int = 0
    answer_chars: int = 0
    """Of all assistant messages read."""
    num_images: int = 0
    tools: list[Any] | None = None


def read_conversation(facts: RequestFacts) -> Conversation:
    """The conversation in `facts.payload`; empty when the payload is gone or of an unknown shape."""
    payload = facts.payload
    conversation = Conversation()
    if not payload:
        return conversation
    if isinstance(payload.get("messages"), list):
        _read_messages(conversation, payload["messages"])
        if "system" in payload:
            conversation.system = _text_of(payload["system"])
    elif facts.endpoint is Endpoint.RESPONSES:
        _read_responses(conversation, payload)
    else:
        conversation.text = prompt_of(payload)
        conversation.num_user = 1
    tools = payload.get("tools")
    if isinstance(tools, list) and tools:
        conversation.tools = tools
    return conversation


def _read_responses(conversation: Conversation, payload: Mapping[str, Any]) -> None:
    given = payload.get("input")
    if isinstance(given, list):
        _read_messages(conversation, given)
    elif isinstance(given, str):
        conversation.text = given
        conversation.num_user = 1
    conversation.system = _text_of(payload.get("instructions")) or conversation.system


def prompt_of(payload: Mapping[str, Any]) -> str:
    """The prompt of a completion, TGI or SGLang request; of a batch, the first."""
    for key in ("prompt", "inputs", "text", "input", "query"):
        given = payload.get(key)
        if given is not None:
            if isinstance(given, list) and given:
                given = given[0]
            return given if isinstance(given, str) else ""
    return ""


def _read_messages(conversation: Conversation, messages: list[Any]) -> None:
    if not messages:
        return
    first = messages[0]
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        conversation.system = _text_of(first.get("content"))
    for message in messages[-_MAX_TURNS:]:
        if isinstance(message, dict):
            _read_turn(conversation, message)
    last = messages[-1]
    if not isinstance(last, dict):
        conversation.text = last if isinstance(last, str) else ""
        return
    role = last.get("role")
    conversation.last_role = role if isinstance(role, str) else "user"
    content = last.get("content")
    conversation.text = _text_of(content)
    if isinstance(content, list):
        conversation.num_images = sum(_is_image(part) for part in content[:_MAX_PARTS])


def _read_turn(conversation: Conversation, message: Mapping[str, Any]) -> None:
    role = message.get("role")
    if role == "user":
        conversation.num_user += 1
    elif role == "assistant":
        content = message.get("content")
        length = len(content) if isinstance(content, str) else len(_text_of(content))
        conversation.num_assistant += 1
        conversation.answer_chars += length
        conversation.last_answer_chars = length
    elif role in ("tool", "function"):
        conversation.num_tool += 1


def _text_of(content: object) -> str:
    """All text of a message; of a long list of parts the first and the last ones."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    if len(content) > _MAX_PARTS:
        content = content[: _MAX_PARTS // 2] + content[-_MAX_PARTS // 2 :]
    return "\n".join(iter_text(content))


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and "image" in str(part.get("type", ""))


def tool_name(tool: object) -> str:
    """The name a tool goes by in any dialect, or nothing."""
    if not isinstance(tool, dict):
        return ""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else tool.get("name")
    return name if isinstance(name, str) else ""


def fingerprint(conversation: Conversation) -> int:
    """Who is speaking: a checksum of the system prompt's start and the tools' names; 0 when there is neither."""
    value = 0
    if conversation.system:
        value = crc32(conversation.system[:_FINGERPRINT_CHARS].encode("utf-8", "replace"))
    for tool in (conversation.tools or ())[:_MAX_PARTS]:
        value = crc32(tool_name(tool).encode("utf-8", "replace"), value)
    return value


def openings(words: list[bytes]) -> tuple[int, int]:
    """How a prompt begins: checksums of its first word and of its first three, numbers left out.

    Prompts made from one template share them even when it starts with a ticket's number.
    """
    first = [word for word in words[:8] if not word.isdigit()][:3]
    return crc32(first[0]) if first else 0, crc32(b" ".join(first))


def digest(seen: Glimpse) -> int:
    """Which prompt it is: a checksum of its start, end and length."""
    return crc32(seen.data, seen.num_chars & 0xFFFFFFFF)
