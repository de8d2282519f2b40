"""A request as numbers: what the trees see. One pass, bounded work for any prompt, and nothing that depends on time.

The order and meaning of the numbers is `FEATURES`; a model says for which `FEATURES_VERSION` it was trained and is
refused for any other. Sampling parameters are not among them: in public data they only tell the data set. Missing is
-1, never NaN, for the flattened trees know no missing direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import expm1, log1p
from typing import Final

from librt.vecs import vec
from mypy_extensions import i32, i64

from prelude_proxy.core.conversation import Conversation, digest, fingerprint, openings, read_conversation
from prelude_proxy.core.cues import Cue, read_cue
from prelude_proxy.core.domain import Endpoint, RequestFacts
from prelude_proxy.core.lexicon import Lexicon, terms
from prelude_proxy.core.modelname import (
    HABIT_FEATURES,
    NAME_FEATURES,
    UNKNOWN_HABIT,
    ModelHabit,
    describe_name,
    normal_name,
)
from prelude_proxy.core.text import Glimpse, glimpse

FEATURES_VERSION: Final = 2

_LEARNED: Final = ("lexicon", *HABIT_FEATURES)
_SHAPE: Final = (
    "is_completion",
    "is_generate",
    "reasoning_switch",
    "reasoning_effort",
    "has_json_schema",
    "num_tools",
    "tool_choice",
    "num_messages",
    "num_user",
    "num_assistant",
    "num_tool",
    "last_role",
    "system_chars",
    "last_answer_chars",
    "mean_answer_chars",
    "prompt_chars",
    "num_images",
)
_MARKED: Final[Mapping[str, str]] = {
    "num_lines": "\n",
    "num_questions": "?",
    "num_colons": ":",
    "num_backticks": "`",
    "num_bars": "|",
    "num_hashes": "#",
    "num_exclamations": "!",
    "digit_share": "0",
    "upper_share": "A",
    "math_share": "=",
    "brace_share": "{",
    "paren_share": "(",
    "quote_share": '"',
    "comma_share": ",",
    "period_share": ".",
    "underscore_share": "_",
    "hyphen_share": "-",
    "semicolon_share": ";",
    "space_share": " ",
    "wide_share": "k",
    "foreign_share": "y",
    "symbol_share": "s",
}
"""Class marks of `core.text` that are counted: first as they are, then as a share of all bytes."""
_PLAIN: Final = "".join(mark for name, mark in _MARKED.items() if name.startswith("num_")).encode()
_SHARES: Final = "".join(mark for name, mark in _MARKED.items() if not name.startswith("num_")).encode()
_TEXT: Final = (
    "text_chars",
    "num_words",
    "mean_word_chars",
    "distinct_words",
    "first_line_chars",
    "last_line_chars",
    "last_line_asks",
    "ends_with",
    "first_word",
    "num_shots",
    *_MARKED,
)
_TASK: Final = ("asked_count", "asked_unit")

_TASK_WORDS: Final[Mapping[str, str]] = {
    "code": "code function python javascript java class def return import sql html css script program algorithm api "
    "bash rust golang regex compile debug implement",
    "maths": "solve equation calculate sum integer prime triangle probability proof prove polynomial number total "
    "percent remainder value compute digits",
    "create": "write create compose story poem essay article blog letter email song draft generate design script "
    "dialogue imagine pretend character role",
    "explain": "explain describe discuss why how compare analyze analyse overview detail detailed steps guide tutorial "
    "example examples elaborate",
    "brief": "brief briefly short concise one single only word yes no true false just answer option options choose "
    "correct select",
    "extract": "classify extract identify label category sentiment entity find detect match list name rewrite "
    "translate summarize summary convert edit",
    "reason": "reasoning think step carefully because therefore logic puzzle assume suppose",
    "tool": "tool tools access search query input call schedule reminder weather current send order book",
}
_CATEGORY: Final = {word.encode(): index for index, words in enumerate(_TASK_WORDS.values()) for word in words.split()}
_UNITS: Final[Mapping[bytes, int]] = {
    **dict.fromkeys((b"word", b"words"), 1),
    **dict.fromkeys((b"sentence", b"sentences", b"line", b"lines"), 2),
    **dict.fromkeys((b"paragraph", b"paragraphs"), 3),
    **dict.fromkeys((b"page", b"pages", b"chapter", b"chapters"), 4),
    **dict.fromkeys((b"ways", b"tips", b"steps", b"examples", b"reasons", b"ideas", b"questions", b"items"), 5),
}
_MARKED_WORDS: Final = frozenset(_UNITS) | frozenset(_CATEGORY)
_NUMERALS: Final = {
    word.encode(): value
    for value, word in enumerate(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], 1
    )
}
_OPENERS: Final = {
    word.encode(): code
    for code, words in enumerate(
        (
            "is are was were do does did can could will would should has have am",
            "who when where which whose whom",
            "what",
            "how",
            "why",
            "write create compose generate draft design develop build make implement",
            "explain describe discuss compare analyze tell",
            "given complete fill answer choose select classify identify determine",
            "rewrite translate summarize edit convert correct",
            "i my we our",
            "a an the there in",
            "please hi hello hey thanks ok okay",
            "if let suppose find calculate compute solve",
            "imagine pretend act you as",
        ),
        1,
    )
    for word in words.split()
}
_ROLES: Final[Mapping[str, float]] = {"user": 0.0, "tool": 1.0, "function": 1.0, "assistant": 2.0}
_ENDS: Final[Mapping[str, float]] = {"?": 1.0, ":": 2.0, ".": 3.0, "!": 4.0, "`": 5.0, "}": 6.0, "]": 6.0, ")": 7.0}
_EFFORTS: Final[Mapping[str, float]] = {
    "none": 0.0,
    "minimal": 1.0,
    "low": 2.0,
    "medium": 3.0,
    "high": 4.0,
    "xhigh": 5.0,
}

FEATURES: Final[tuple[str, ...]] = (
    *_LEARNED,
    *NAME_FEATURES,
    *_SHAPE,
    *_TEXT,
    *_TASK,
    *(f"words_{name}" for name in _TASK_WORDS),
)
"""Names of the numbers, in the order of the vector."""


_HABIT_SUPPORT: Final = FEATURES.index("habit_support")


class Extract:
    """What one request looks like to the model, and the keys under which the prior remembers it."""

    __slots__ = ("cue", "digest", "fingerprint", "opening", "template", "values")

    def __init__(
        self, values: list[float], *, fingerprint: int, opening: int, template: int, digest: int, cue: Cue | None
    ) -> None:
        self.values = values
        self.fingerprint = fingerprint
        self.opening = opening
        self.template = template
        self.digest = digest
        self.cue = cue
        """What the prompt says outright; no number for the trees."""


class FeatureExtractor:
    """Request in, feature vector out.

    Holds what training learned about words and model names, and no more state than a bounded memo of model names
    already described.
    """

    __slots__ = ("_habits", "_names", "lexicon")

    _MAX_NAMES = 1024

    def __init__(self, lexicon: Lexicon, habits: Mapping[str, ModelHabit]) -> None:
        self.lexicon = lexicon
        self._habits = habits
        self._names: dict[str, list[float]] = {}

    def extract(self, facts: RequestFacts) -> Extract:
        """Features of `facts`, whose payload must not be forgotten yet."""
        conversation = read_conversation(facts)
        seen = glimpse(conversation.text)
        values = [self.lexicon.score(seen.words, seen.distinct)]
        values += self._of_name(facts.model or "")
        values += _of_shape(facts, conversation)
        values += _of_text(seen)
        task = _of_task(seen)
        values += task
        cue = read_cue(
            seen.words, seen.distinct, asked=(expm1(task[0]), task[1]), is_known_model=values[_HABIT_SUPPORT] > 0.0
        )
        opening, template = openings(seen.words)
        return Extract(
            values,
            fingerprint=fingerprint(conversation),
            opening=opening,
            template=template,
            digest=digest(seen),
            cue=cue,
        )

    def terms(self, facts: RequestFacts) -> list[bytes]:
        """What the lexicon reads, for training it."""
        seen = glimpse(read_conversation(facts).text)
        return terms(seen.words, seen.distinct)

    def _of_name(self, name: str) -> list[float]:
        known = self._names.get(name)
        if known is None:
            habit = self._habits.get(normal_name(name), UNKNOWN_HABIT)
            known = [*habit.values(), *describe_name(name)]
            if len(self._names) >= self._MAX_NAMES:
                self._names.clear()
            self._names[name] = known
        return known


def _of_shape(facts: RequestFacts, conversation: Conversation) -> list[float]:
    payload = facts.payload or {}
    answers = conversation.num_assistant
    choice = payload.get("tool_choice")
    effort = payload.get("reasoning_effort")
    return [
        float(facts.endpoint is Endpoint.COMPLETIONS),
        float(facts.endpoint is Endpoint.GENERATE),
        -1.0 if facts.reasoning is None else float(facts.reasoning),
        _EFFORTS.get(effort, -1.0) if isinstance(effort, str) else -1.0,
        float(facts.has_json_schema),
        float(len(conversation.tools)) if conversation.tools else 0.0,
        0.0 if choice is None or choice == "auto" else 1.0 if choice == "none" else 2.0,
        float(facts.num_messages),
        float(conversation.num_user),
        float(answers),
        float(conversation.num_tool),
        _ROLES.get(conversation.last_role, 3.0),
        log1p(len(conversation.system)),
        log1p(conversation.last_answer_chars) if answers else -1.0,
        log1p(conversation.answer_chars / answers) if answers else -1.0,
        log1p(facts.prompt_chars),
        float(conversation.num_images),
    ]


def _of_text(seen: Glimpse) -> list[float]:
    head, words = seen.head, seen.words
    counts = _tally(seen.marks)
    plain = [float(counts[i64(mark)]) for mark in _PLAIN]
    per_byte = 1.0 / (len(seen.marks) or 1)
    shares = [float(counts[i64(mark)]) * per_byte for mark in _SHARES]
    num_words = len(words)
    end = (seen.tail or head).rstrip()
    last_break = end.rfind("\n")
    first_line = head.find("\n", 1)
    return [
        log1p(seen.num_chars),
        num_words,
        len(seen.marks) / (num_words + 1),
        len(seen.distinct) / (num_words + 1),
        first_line if first_line >= 0 else len(head),
        len(end) - last_break - 1,
        end.find("?", last_break + 1) >= 0,
        _ENDS.get(end[-1:], 0.0),
        _OPENERS.get(words[0], 0) if words else -1.0,
        head.count("\n\n"),
        *plain,
        *shares,
    ]


def _tally(marks: bytes) -> vec[i32]:
    """How often each class mark occurs."""
    counts = _NO_COUNTS[:_NUM_MARKS]
    for index in range(i64(len(marks))):
        counts[i64(marks[index])] += 1
    return counts


_NUM_MARKS: Final = 128
_NO_COUNTS: Final = vec[i32]([0] * _NUM_MARKS)


def _of_task(seen: Glimpse) -> list[float]:
    values = [-1.0] + [0.0] * (1 + len(_TASK_WORDS))
    words = seen.words
    for word in seen.distinct & _MARKED_WORDS:
        unit = _UNITS.get(word)
        if unit is not None:
            number = _number(words[words.index(word) - 1])
            if number is not None:
                values[0], values[1] = log1p(number), float(unit)
        category = _CATEGORY.get(word)
        if category is not None:
            values[2 + category] += 1.0
    return values


def _number(word: bytes) -> float | None:
    if word.isdigit():
        return float(word[:6])
    value = _NUMERALS.get(word)
    return None if value is None else float(value)
