from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.adapters.agents.limits import LimitCounter
from agent_runner.errors import LimitReachedError
from agent_runner.v1.options_pb2 import Limits
from agent_runner.v1.status_pb2 import Usage


@given(limit=st.integers(1, 20), sizes=st.lists(st.integers(1, 50), min_size=25, max_size=25))
def test_tokens_are_overshot_by_one_call_at_most(limit: int, sizes: list[int]) -> None:
    counter = LimitCounter(Limits(tokens=limit))
    used = 0
    with pytest.raises(LimitReachedError, match=f"tokens = {limit}"):
        for size in sizes:
            counter.before_model_call()
            assert used < limit
            counter.used(Usage(input_tokens=size))
            used += size


@given(limit=st.integers(1, 20), before=st.integers(0, 30))
def test_calls_are_never_more_than_the_limit_over_all_attempts(limit: int, before: int) -> None:
    counter = LimitCounter(Limits(model_calls=limit, tool_calls=limit), Usage(model_calls=before), before)
    for allow in (counter.before_model_call, counter.before_tool_call):
        allowed = 0
        with pytest.raises(LimitReachedError):
            for _ in range(limit + 1):
                allow()
                allowed += 1
        assert allowed == max(0, limit - before)


def test_no_limit_allows_everything() -> None:
    counter = LimitCounter(Limits())
    for _ in range(1000):
        counter.before_model_call()
        counter.before_tool_call()
        counter.used(Usage(input_tokens=10**9, cost_usd=10**6))
