"""Answers are learned from in the order of dispatch."""

from __future__ import annotations

from prelude_proxy.core.lessons import Lessons


def taught(lessons):
    return [(lesson.subject, lesson.output_tokens, lesson.censored) for lesson in lessons]


def test_a_short_answer_waits_for_the_long_one_before_it():
    """Otherwise only short ones would be known at first."""
    lessons = Lessons()
    long, short = lessons.open("long", 0.0), lessons.open("short", 0.1)
    assert lessons.know(short, 5, censored=False, now=0.2) == []
    assert taught(lessons.know(long, 700, censored=False, now=2.0)) == [("long", 700, False), ("short", 5, False)]
    assert len(lessons) == 0


def test_a_lower_bound_is_a_lesson_and_lets_the_others_go():
    """A stream that outgrew its class is known to be long, and its true length still comes later."""
    lessons = Lessons()
    long, short = lessons.open("long", 0.0), lessons.open("short", 0.1)
    lessons.know(short, 5, censored=False, now=0.2)
    assert taught(lessons.know(long, 65, censored=True, now=0.5)) == [("long", 65, True), ("short", 5, False)]
    assert taught(lessons.know(long, 700, censored=False, now=3.0)) == [("long", 700, False)]


def test_a_failed_answer_teaches_nothing_and_holds_nobody_up():
    """No tokens, no lesson."""
    lessons = Lessons()
    failed, short = lessons.open("failed", 0.0), lessons.open("short", 0.1)
    lessons.know(short, 5, censored=False, now=0.2)
    assert taught(lessons.know(failed, 0, censored=False, now=0.3)) == [("short", 5, False)]


def test_patience_ends():
    """An answer that is not streamed says nothing until its end; the others do not wait for ever."""
    lessons = Lessons(patience_s=5.0)
    silent = lessons.open("silent", 0.0)
    lessons.know(lessons.open("early", 0.1), 5, censored=False, now=0.2)
    assert taught(lessons.know(lessons.open("late", 5.5), 6, censored=False, now=5.6)) == [
        ("early", 5, False),
        ("late", 6, False),
    ]
    assert taught(lessons.know(silent, 900, censored=False, now=9.0)) == [("silent", 900, False)]
