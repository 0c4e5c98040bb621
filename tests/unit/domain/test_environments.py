"""Layers of variables: a later one wins, and each value knows where it is from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.domain.environments import (
    MOST_BYTES,
    UNSET,
    MergedEnvironment,
    is_variable_name,
    layer,
    merge,
    resolve,
    violations,
)
from ai.stigmer.agentic.environment.v1.spec_pb2 import EnvironmentValue
from ai.stigmer.agentic.executioncontext.v1.spec_pb2 import ExecutionValue

Data = dict[str, EnvironmentValue]

NAMES = st.sampled_from(["A", "B", "C", "D"])
VALUES = st.builds(
    EnvironmentValue, value=st.sampled_from(["", "1", "2", "three", UNSET]), is_secret=st.booleans()
)
DATA = st.dictionaries(NAMES, VALUES, max_size=4)
LAYERS = st.lists(st.tuples(DATA, st.booleans()), max_size=6).map(
    lambda found: [layer(f"layer {i}", data, empty_is_required=ask) for i, (data, ask) in enumerate(found)]
)


def value(text: str, *, secret: bool = False) -> EnvironmentValue:
    return EnvironmentValue(value=text, is_secret=secret)


@given(LAYERS, st.integers(0, 6), st.integers(0, 6))
def test_it_does_not_matter_which_neighbours_are_merged_first(
    layers: list[MergedEnvironment], first: int, second: int
) -> None:
    low, high = sorted((first, second))
    grouped = merge([merge(layers[:low]), merge(layers[low:high]), merge(layers[high:])])

    assert grouped == merge(layers)


@given(LAYERS)
def test_the_last_layer_that_speaks_of_a_variable_wins(layers: list[MergedEnvironment]) -> None:
    merged = merge(layers)

    for name, variable in merged.variables.items():
        speaking = [
            one.variables[name] for one in layers if name in one.variables and one.variables[name].sources
        ]
        assert variable.value == (speaking[-1].value if speaking else None)
        assert variable.source == (speaking[-1].source if speaking else "")
        assert variable.is_secret == any(
            one.variables[name].is_secret for one in layers if name in one.variables
        )


@given(LAYERS)
def test_no_layer_loses_a_variable_it_does_not_speak_of(layers: list[MergedEnvironment]) -> None:
    assert merge(layers).followed_by(MergedEnvironment()) == merge(layers)
    assert MergedEnvironment().followed_by(merge(layers)) == merge(layers)


def test_the_environments_of_the_instance_win_over_the_agent_and_runtime_values_win_over_all() -> None:
    merged = resolve(
        {"A": value("agent"), "B": value("agent"), "C": value("agent"), "D": value("agent")},
        [("base", {"B": value("base"), "C": value("base")}), ("prod", {"C": value("prod")})],
        {"D": ExecutionValue(value="runtime")},
    )

    assert merged.values == {"A": "agent", "B": "base", "C": "prod", "D": "runtime"}
    assert merged.sources == {
        "A": "agent",
        "B": "environment base",
        "C": "environment prod",
        "D": "runtime",
    }
    assert merged.variables["C"].sources == ("agent", "environment base", "environment prod")


def test_values_of_agent_and_execution_count_without_any_environment() -> None:
    merged = resolve({"A": value("agent")}, [], {"B": ExecutionValue(value="runtime")})

    assert merged.values == {"A": "agent", "B": "runtime"}


def test_a_later_layer_can_remove_a_variable() -> None:
    merged = resolve({"PROXY": value("http://x")}, [("base", {"PROXY": value(UNSET)})], {})

    assert merged.values == {}
    assert merged.variables["PROXY"].source == "environment base"


def test_a_removed_variable_can_be_set_again() -> None:
    merged = resolve(
        {"PROXY": value("a")}, [("base", {"PROXY": value(UNSET)})], {"PROXY": ExecutionValue(value="c")}
    )

    assert merged.values == {"PROXY": "c"}


def test_a_required_variable_without_a_value_is_named() -> None:
    agent = {"TOKEN": value("", secret=True), "URL": value(""), "NAME": value("x")}

    assert resolve(agent, [], {}).missing == ("TOKEN", "URL")
    assert resolve(agent, [("base", {"URL": value("u")})], {"TOKEN": ExecutionValue(value="t")}).missing == ()


def test_removing_a_required_variable_leaves_it_missing() -> None:
    assert resolve({"URL": value("")}, [("base", {"URL": value("u")})], {"URL": value(UNSET)}).missing == (
        "URL",
    )


def test_a_value_for_a_variable_the_agent_calls_secret_is_secret() -> None:
    merged = resolve({"TOKEN": value("", secret=True)}, [], {"TOKEN": ExecutionValue(value="clear")})

    assert merged.secrets == {"TOKEN": "clear"}


def test_an_empty_value_of_an_environment_sets_the_variable_to_nothing() -> None:
    assert resolve({"A": value("x")}, [("base", {"A": value("")})], {}).values == {"A": ""}


def test_no_value_is_in_the_representation() -> None:
    assert "hunter2" not in repr(resolve({"A": value("hunter2")}, [], {}))


@pytest.mark.parametrize("name", ["A", "_", "API_KEY_2", "lower", "A" * 255])
def test_what_a_shell_can_read_is_a_variable_name(name: str) -> None:
    assert is_variable_name(name)


@pytest.mark.parametrize("name", ["", "2A", "A-B", "A B", "A=B", "A\n", "Ä", "A" * 256, "A.B", "\0"])
def test_what_a_shell_cannot_read_is_no_variable_name(name: str) -> None:
    assert not is_variable_name(name)
    assert violations("spec.data", {name: value("x")})[0].field.startswith("spec.data[")


def test_a_value_of_a_megabyte_is_refused_without_repeating_it() -> None:
    (problem,) = violations("spec.data", {"BIG": value("s" * MOST_BYTES + "tail")})

    assert problem.field == 'spec.data["BIG"]'
    assert "65540 bytes" in problem.problem
    assert "tail" not in problem.problem


def test_many_large_values_are_refused_together() -> None:
    data = {f"V{i}": value("x" * MOST_BYTES) for i in range(17)}

    assert [problem.field for problem in violations("spec.data", data)] == ["spec.data"]
