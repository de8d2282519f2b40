import statistics

import pytest

from prelude_proxy.engine.lengths import draw_output_tokens, prompt_kind
from prelude_proxy.engine.words import text_bytes


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("What is the capital of France?", "short"),
        ("Hi", "short"),
        ("Explain in two paragraphs what a compiler is and where it is used.", "medium"),
        ("Prove step by step that there are infinitely many primes.", "long"),
        ("Write a detailed 3000 word essay about bread.", "long"),
    ],
)
def test_the_kind_is_what_a_reader_would_expect(prompt, kind):
    """Cues in the wording decide, long ones first."""
    assert prompt_kind(prompt) == kind


def test_draws_depend_on_prompt_and_seed_alone():
    """The same prompt is as long in every process, another seed gives another length."""
    assert draw_output_tokens("Prove it.", 3) == draw_output_tokens("Prove it.", 3)
    assert len({draw_output_tokens("Prove it.", seed) for seed in range(20)}) > 10


def test_kinds_differ_in_length():
    """Medians lie far apart, as those of real classes do."""

    def median(prompt: str) -> float:
        return statistics.median(draw_output_tokens(f"{prompt} {number}", 0) for number in range(200))

    short, medium, long = (
        median("Translate bread"),
        median("Explain what a compiler does to a program"),
        median("Prove"),
    )
    assert short < 40 < 100 < medium < 300 < 600 < long


def test_text_in_pieces_is_the_text_in_whole():
    """However tokens are bundled into events, they say the same; nothing in them needs escaping."""
    whole = text_bytes(5, 0, 300)
    pieces = b"".join(
        text_bytes(5, first, first + size) for first, size in zip(range(0, 300, 3), [3] * 100, strict=True)
    )
    assert pieces == whole
    assert whole.isascii()
    assert not set(whole) & set(b'"\\\n')
