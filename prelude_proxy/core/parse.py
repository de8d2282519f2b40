"""Body and path in, `RequestFacts` out. The bytes themselves are forwarded untouched; this only reads them.

Only what routing and classification need is checked, and strictly: a field of the wrong type that we act on is the
caller's fault here; everything else is the engine's to judge. Never raises anything but `ClientError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson

from prelude_proxy.core.domain import Dialect, Endpoint, RequestFacts
from prelude_proxy.errors import ClientError

ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    "/v1/chat/completions": Endpoint.CHAT,
    "/v1/completions": Endpoint.COMPLETIONS,
    "/v1/responses": Endpoint.RESPONSES,
    "/v1/messages": Endpoint.MESSAGES,
    "/v1/embeddings": Endpoint.EMBEDDINGS,
    "/rerank": Endpoint.RERANK,
    "/v1/rerank": Endpoint.RERANK,
    "/v2/rerank": Endpoint.RERANK,
    "/score": Endpoint.SCORE,
    "/v1/score": Endpoint.SCORE,
    "/classify": Endpoint.CLASSIFY,
    "/pooling": Endpoint.POOLING,
    "/": Endpoint.GENERATE,
    "/generate": Endpoint.GENERATE,
    "/generate_stream": Endpoint.GENERATE,
    "/invocations": Endpoint.GENERATE,
}

_TGI_PATHS: Final = frozenset({"/", "/generate", "/generate_stream", "/invocations"})
_MAX_COUNT: Final = 2**31 - 1


def endpoint_of(path: str) -> Endpoint:
    """What `path` (without query) asks for; `OTHER` for anything we do not read."""
    return ENDPOINTS.get(path, Endpoint.OTHER)


def dialect_of(path: str) -> Dialect:
    """How errors on `path` must look to its caller."""
    if path in _TGI_PATHS:
        return Dialect.TGI
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI


def parse_request(path: str, body: bytes, headers: Mapping[str, str], tenant: str | None = None) -> RequestFacts:
    """Facts of a POST to a known endpoint. `headers` have lower-case names.

    Raises:
        ClientError: 400, the body is not a JSON object, or a field we act on has the wrong type.
    """
    payload = _decode(body)
    endpoint = endpoint_of(path)
    facts = RequestFacts(path, endpoint, dialect_of(path), tenant=tenant, headers=headers, payload=payload)
    facts.model = _string(payload, "model")
    facts.stream = path == "/generate_stream" or _boolean(payload, "stream")
    reader = _READERS.get(endpoint)
    if reader is not None:
        reader(facts, payload)
    return facts


def estimate_tokens(text: str) -> int:
    """Rough token count of `text`: 4 characters a token for ASCII, 3 UTF-8 bytes otherwise (cl100k averages)."""
    if text.isascii():
        return len(text) // 4 + 1 if text else 0
    return len(text.encode("utf-8", "replace")) // 3 + 1


def iter_text(content: object) -> Iterator[str]:
    """Every text in a message's `content`: a string, or a list of parts that are strings or carry `text`."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text


# --- one reader an endpoint family ------------------------------------------------------------------------------------


def _read_chat(facts: RequestFacts, payload: dict[str, Any]) -> None:
    messages = _messages(payload, "messages", required=True)
    facts.num_messages = len(messages)
    for message in messages:
        _count_text(facts, message.get("content"))
    _count_text(facts, payload.get("system"))  # Anthropic keeps it beside the messages
    _read_tools(facts, payload)
    _read_sampling(facts, payload)


def _read_completion(facts: RequestFacts, payload: dict[str, Any]) -> None:
    prompt = payload.get("prompt")
    if prompt is None and "prompt_embeds" not in payload:
        raise ClientError("'prompt' is required", param="prompt")
    _count_prompt(facts, prompt, "prompt")
    _read_sampling(facts, payload)


def _read_responses(facts: RequestFacts, payload: dict[str, Any]) -> None:
    given = payload.get("input")
    if isinstance(given, list):
        facts.num_messages = len(given)
        for item in given:
            _count_text(facts, item.get("content") if isinstance(item, dict) else item)
    else:
        _count_prompt(facts, given, "input")
    _count_text(facts, payload.get("instructions"))
    _read_tools(facts, payload)
    _read_sampling(facts, payload)


def _read_generate(facts: RequestFacts, payload: dict[str, Any]) -> None:
    """TGI (`inputs`, `parameters`) and SGLang (`text` or `input_ids`, `sampling_params`)."""
    if "inputs" in payload:
        _count_prompt(facts, payload["inputs"], "inputs")
        parameters = _object(payload, "parameters")
    elif "text" in payload or "input_ids" in payload:
        facts.dialect = Dialect.OPENAI
        _count_prompt(facts, payload.get("text", payload.get("input_ids")), "text")
        parameters = _object(payload, "sampling_params")
    elif "messages" in payload:  # /invocations speaks chat as well
        _read_chat(facts, payload)
        return
    else:
        raise ClientError("'inputs' is required", param="inputs", kind="validation")
    facts.max_tokens = _count(parameters, "max_new_tokens")
    facts.min_tokens = _count(parameters, "min_new_tokens") or 0
    facts.num_choices = max(1, _count(parameters, "best_of") or _count(parameters, "n") or 1)
    facts.has_json_schema = any(parameters.get(key) for key in ("grammar", "json_schema", "regex"))
    facts.wants_prompt_logprobs = parameters.get("decoder_input_details") is True


def _read_pooled(facts: RequestFacts, payload: dict[str, Any]) -> None:
    """Embeddings, rerank, score, classify, pooling: one prefill, nothing decoded."""
    for key in ("input", "query", "documents", "text_1", "text_2", "data_1", "data_2"):
        if payload.get(key) is not None:
            _count_prompt(facts, payload[key], key, loose=True)
    if isinstance(payload.get("messages"), list):
        _read_chat(facts, payload)


_READERS: Final[Mapping[Endpoint, Callable[[RequestFacts, dict[str, Any]], None]]] = {
    Endpoint.CHAT: _read_chat,
    Endpoint.MESSAGES: _read_chat,
    Endpoint.COMPLETIONS: _read_completion,
    Endpoint.RESPONSES: _read_responses,
    Endpoint.GENERATE: _read_generate,
    Endpoint.EMBEDDINGS: _read_pooled,
    Endpoint.RERANK: _read_pooled,
    Endpoint.SCORE: _read_pooled,
    Endpoint.CLASSIFY: _read_pooled,
    Endpoint.POOLING: _read_pooled,
}


# --- fields -----------------------------------------------------------------------------------------------------------


def _read_sampling(facts: RequestFacts, payload: dict[str, Any]) -> None:
    for key in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        limit = _count(payload, key)
        if limit is not None:
            facts.max_tokens = limit if facts.max_tokens is None else min(limit, facts.max_tokens)
    facts.min_tokens = _count(payload, "min_tokens") or 0
    facts.num_choices = max(1, _count(payload, "n") or 1, _count(payload, "best_of") or 1)
    facts.wants_prompt_logprobs = payload.get("prompt_logprobs") is not None or (
        payload.get("echo") is True and payload.get("logprobs") is not None
    )
    structured = payload.get("structured_outputs")
    structured = structured if isinstance(structured, dict) else {}
    facts.has_fixed_choices = bool(payload.get("guided_choice") or structured.get("choice"))
    shape = payload.get("response_format")
    facts.has_json_schema = (
        (isinstance(shape, dict) and str(shape.get("type")) in {"json_schema", "json_object", "structural_tag"})
        or any(payload.get(key) for key in ("guided_json", "guided_regex", "guided_grammar"))
        or any(structured.get(key) for key in ("json", "regex", "grammar", "json_object"))
    )
    facts.reasoning = _reasoning_switch(payload)


def _reasoning_switch(payload: dict[str, Any]) -> bool | None:
    """The dialects' ways to say "think" or "do not"; the first that speaks wins, None if none does."""
    template = payload.get("chat_template_kwargs")
    if isinstance(template, dict):
        for key in ("enable_thinking", "thinking"):
            if isinstance(template.get(key), bool):
                return bool(template[key])
    thinking = payload.get("thinking")
    if isinstance(thinking, dict) and str(thinking.get("type")) in {"enabled", "disabled", "adaptive"}:
        return bool(thinking["type"] != "disabled")
    effort = payload.get("reasoning_effort")
    nested = payload.get("reasoning")
    if effort is None and isinstance(nested, dict):
        if isinstance(nested.get("enabled"), bool):
            return bool(nested["enabled"])
        effort = nested.get("effort")
    if isinstance(effort, str):
        return effort not in {"none", "minimal"}
    return None


def _read_tools(facts: RequestFacts, payload: dict[str, Any]) -> None:
    tools = payload.get("tools")
    if not isinstance(tools, list) or not tools:
        return
    facts.has_tools = payload.get("tool_choice") != "none"
    size = len(orjson.dumps(tools))  # the template writes them into the prompt as JSON
    facts.prompt_chars += size
    facts.prompt_tokens += size // 4


def _count_text(facts: RequestFacts, content: object) -> None:
    for text in iter_text(content):
        facts.prompt_chars += len(text)
        facts.prompt_tokens += estimate_tokens(text)


def _count_prompt(facts: RequestFacts, prompt: object, param: str, *, loose: bool = False) -> None:
    """A prompt is a string, token ids, or a list of either."""
    if isinstance(prompt, str):
        _count_text(facts, prompt)
    elif isinstance(prompt, list):
        if prompt and isinstance(prompt[0], int):
            facts.prompt_tokens += len(prompt)
            return
        for item in prompt:
            if isinstance(item, list):
                facts.prompt_tokens += len(item)
            else:
                _count_text(facts, item)
    elif isinstance(prompt, dict) and loose:
        _count_text(facts, prompt.get("text") or prompt.get("content"))
    elif prompt is not None and not loose:
        raise ClientError(f"{param!r} must be a string or a list, not {_name(prompt)}", param=param)


def _decode(body: bytes) -> dict[str, Any]:
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ClientError(f"the body is not valid JSON: {error}", kind="invalid_request_error") from None
    if not isinstance(payload, dict):
        raise ClientError(f"the body must be a JSON object, not {_name(payload)}")
    return payload


def _messages(payload: dict[str, Any], key: str, *, required: bool) -> list[dict[str, Any]]:
    messages = payload.get(key)
    if messages is None and not required:
        return []
    if not isinstance(messages, list) or not messages:
        raise ClientError(f"{key!r} must be a list of at least one message", param=key)
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ClientError(f"{key}[{index}] must be an object, not {_name(message)}", param=f"{key}[{index}]")
    return messages


def _string(payload: dict[str, Any], key: str) -> str | None:
    value = payload.get(key)
    if value is not None and not isinstance(value, str):
        raise ClientError(f"{key!r} must be a string, not {_name(value)}", param=key)
    return value or None


def _boolean(payload: dict[str, Any], key: str) -> bool:
    value = payload.get(key)
    if value is not None and not isinstance(value, bool):
        raise ClientError(f"{key!r} must be true or false, not {_name(value)}", param=key)
    return bool(value)


def _count(payload: dict[str, Any], key: str) -> int | None:
    value = payload.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ClientError(f"{key!r} must be a whole number, not {_name(value)}", param=key)
    if value < 0:
        raise ClientError(f"{key!r} must not be negative", param=key)
    return min(int(value), _MAX_COUNT)


def _object(payload: dict[str, Any], key: str) -> dict[str, Any]:
    value = payload.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ClientError(f"{key!r} must be an object, not {_name(value)}", param=key)
    return value


def _name(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return kinds[type(value)]
