"""What a model's name tells."""

from __future__ import annotations

import pytest

from prelude_proxy.core.modelname import NAME_FEATURES, describe_name, normal_name


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("gpt-4o-2024-11-20", "gpt-4o"),
        ("claude-3-7-sonnet-20250219", "claude-3-7-sonnet"),
        ("deepseek-r1-0528", "deepseek-r1"),
        ("", ""),
    ],
)
def test_owner_case_and_date_are_dropped(name: str, normal: str) -> None:
    """One model under several names has one habit."""
    assert normal_name(name) == normal


@pytest.mark.parametrize(
    ("name", "feature", "value"),
    [
        ("qwen3-30b-a3b-think", "name_thinks", 1.0),
        ("qwen3-30b-a3b-nothink", "name_thinks", -1.0),
        ("o3-mini", "name_thinks", 1.0),
        ("llama-3.3-70b-instruct", "name_instruct", 1.0),
        ("gemini-2.0-flash", "name_small", 1.0),
        ("tiny", "name_size", -1.0),
    ],
)
def test_the_name_is_read(name: str, feature: str, value: float) -> None:
    """Thinking, size and kind show in many names."""
    assert dict(zip(NAME_FEATURES, describe_name(name), strict=True))[feature] == value


def test_a_monstrous_name_is_read_in_part() -> None:
    """A client may send any string."""
    assert len(describe_name("7b-" * 100_000)) == len(NAME_FEATURES)
