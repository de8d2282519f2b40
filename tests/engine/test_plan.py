from hypothesis import given
from hypothesis import strategies as st

from prelude_proxy.engine.plan import Plan


@given(st.integers(1, 10**7), st.integers(0, 10**4), st.integers(1, 500), st.integers(0, 10**10))
def test_as_many_steps_end_as_fit(first_ns, growth_ns, steps, spare_ns):
    """The root of the quadratic is the last step that ends in time: the next one would not."""
    plan = Plan(start_ns=5, first_ns=first_ns, growth_ns=growth_ns, steps=steps)
    done = plan.steps_until(5 + spare_ns)
    assert plan.end_ns(done) <= 5 + spare_ns
    assert done == steps or plan.end_ns(done + 1) > 5 + spare_ns


@given(st.integers(1, 10**6), st.integers(0, 10**4), st.integers(0, 200))
def test_the_closed_form_is_the_sum_of_the_steps(first_ns, growth_ns, steps):
    """Each step takes `growth` more than the one before it."""
    plan = Plan(start_ns=0, first_ns=first_ns, growth_ns=growth_ns, steps=steps)
    assert plan.end_ns(steps) == sum(first_ns + number * growth_ns for number in range(steps))
