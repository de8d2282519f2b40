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


def test_no_more_lessons_a_second_than_pay():
    """A second's worth at once, then as many as come due; the others are never due, whatever becomes known of them."""
    lessons = Lessons(max_per_s=10.0)
    first = [lessons.open(number, 1.0) for number in range(25)]
    due = [due for lesson in first for due in lessons.know(lesson, 5, censored=False, now=1.1)]
    assert [lesson.subject for lesson in due] == list(range(10))
    later = [lessons.open(number, 1.55) for number in range(100, 110)]
    due = [due for lesson in later for due in lessons.know(lesson, 5, censored=False, now=1.6)]
    assert [lesson.subject for lesson in due] == [100, 101, 102, 103, 104]
    assert len(lessons) == 0
