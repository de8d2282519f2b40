"""One HTTP answer while the engine writes it: turns token counts into bytes, for each choice of the request."""

from __future__ import annotations

import asyncio

from prelude_proxy.engine.model import Sequence
from prelude_proxy.engine.wire import Choice, Usage, Wire
from prelude_proxy.engine.words import text_bytes


class Answer:
    """Collects the choices of one request; `done` resolves when the last of them has ended."""

    def __init__(self, wire: Wire, prompt_tokens: int, done: asyncio.Future[None]) -> None:
        self.wire = wire
        self.done = done
        self.sequences: list[Sequence] = []
        self._prompt_tokens = prompt_tokens
        self._ended: list[Choice | None] = []
        self._transport: asyncio.WriteTransport | None = None
        self._parts: list[ChoiceWriter] = []

    def add_choice(self, sequence: Sequence, *, reason: str, first_word: int) -> None:
        """`sequence` will write the next choice."""
        part = ChoiceWriter(self, len(self._parts), reason, first_word)
        sequence.owner = part
        self.sequences.append(sequence)
        self._parts.append(part)
        self._ended.append(None)

    def stream_to(self, transport: asyncio.WriteTransport) -> None:
        """From now on tokens are written here as chunks of HTTP/1.1, past the server's own writer, which costs more.

        The response head must be out. What came before is made up for.
        """
        self._transport = transport
        for part in self._parts:
            part.flush()

    def whole(self) -> bytes:
        """The body of an answer that does not stream; call when `done`."""
        choices = [choice for choice in self._ended if choice is not None]
        return self.wire.whole(choices, self._usage(choices))

    def closing(self) -> bytes:
        """The end of a stream, not chunk-framed."""
        return self.wire.closing(self._usage([choice for choice in self._ended if choice is not None]))

    @property
    def is_streaming(self) -> bool:
        """A client reads along."""
        return self._transport is not None

    def write(self, data: bytes) -> None:
        """One chunk to the client, if it is still there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_choice(self, index: int, choice: Choice) -> None:
        """Choice `index` is complete."""
        self._ended[index] = choice
        if None not in self._ended and not self.done.done():
            self.done.set_result(None)

    def _usage(self, choices: list[Choice]) -> Usage:
        return Usage(self._prompt_tokens, sum(choice.num_tokens for choice in choices))


class ChoiceWriter:
    """The owner of one sequence. Tokens of a late wake-up go out together, in one write."""

    __slots__ = ("_answer", "_first_word", "_generated", "_index", "_reason", "_sent")

    def __init__(self, answer: Answer, index: int, reason: str, first_word: int) -> None:
        self._answer = answer
        self._index = index
        self._reason = reason
        self._first_word = first_word
        self._sent = 0
        self._generated = 0

    def deliver(self, sequence: Sequence, num_generated: int, *, ended: bool) -> None:
        """See `service.Reader`."""
        del sequence
        self._generated = num_generated
        if ended:
            self._end()
        elif self._answer.is_streaming:
            self.flush()

    def flush(self) -> None:
        """Write the tokens that were not sent yet. The last one waits for `deliver(…, ended=True)`."""
        new, sent = self._generated, self._sent
        if new == sent:
            return
        wire = self._answer.wire
        size = new - sent if wire.merges_tokens else 1
        data = b"".join(
            wire.token(self._index, first, text_bytes(self._first_word, first, first + size))
            for first in range(sent, new, size)
        )
        self._answer.write(data if sent else wire.opening(self._index) + data)
        self._sent = new

    def _end(self) -> None:
        num = self._generated
        if self._answer.is_streaming:
            self._generated = num - 1
            self.flush()
        last = b"" if self._reason == "stop" else text_bytes(self._first_word, num - 1, num)
        text = text_bytes(self._first_word, 0, num - 1) + last
        choice = Choice(text.decode(), num, self._reason)
        wire = self._answer.wire
        if self._answer.is_streaming:
            data = wire.ending(self._index, num - 1, last, choice)
            self._answer.write(data if self._sent else wire.opening(self._index) + data)
            self._sent = num
        self._answer.end_choice(self._index, choice)
