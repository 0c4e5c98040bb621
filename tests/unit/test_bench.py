"""What the bench says of its numbers; the numbers themselves are nobody's test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from bench.__main__ import exit_code, summary
from bench.loads import Load, failures_row, run_round
from bench.measures import MEASURES, Measure, measure
from bench.plans import QUICK, Plan
from bench.product import TurnFailedError
from bench.profiles import by_package
from bench.proxy import counting_proxy
from bench.rows import Floor, Row, least, most, quantile, row_of

ROW = Row("a line", 5.0, "ms", floors=(Floor("bare loop", 4.0, "ms"),), budget=most(5))


@pytest.mark.parametrize("name", MEASURES)
def test_every_name_leads_to_a_function(name: str) -> None:
    assert callable(MEASURES[name].load())
    assert MEASURES[name].says


def test_a_budget_is_kept_up_to_its_limit() -> None:
    assert ROW.holds
    assert not replace(ROW, value=5.01).holds
    assert replace(ROW, value=5.01, budget=least(5)).holds
    assert replace(ROW, budget=None).holds is None


def test_a_missed_budget_is_marked_and_listed_with_its_floor() -> None:
    missed = replace(ROW, name="too slow", value=6.0)
    assert "MISSED" in missed.line()
    assert "MISSED" not in ROW.line()
    told = summary([ROW, missed])
    assert told.startswith("1 budgets hold, 1 are missed:")
    assert "too slow" in told
    assert "bare loop 4 ms" in told


def test_a_missed_budget_fails_only_where_that_is_asked_for() -> None:
    missed, failed = replace(ROW, value=6.0), replace(ROW, failed=True)
    assert exit_code([ROW, missed], check=False) == 0
    assert exit_code([ROW, missed], check=True) == 3
    assert exit_code([ROW], check=True) == 0
    assert exit_code([missed, failed], check=True) == exit_code([failed], check=False) == 1


def test_a_row_of_many_values_tells_how_they_spread() -> None:
    row = row_of("many", [3.0, 1.0, 2.0, 4.0, 100.0], "ms", share=0.95)
    assert row.spread is not None
    assert (row.n, row.spread.p50, row.spread.low, row.spread.high) == (5, 3.0, 1.0, 100.0)
    assert row.value == row.spread.p95 == pytest.approx(80.8)
    assert row.as_dict()["spread"] == {"p50": 3.0, "p95": pytest.approx(80.8), "low": 1.0, "high": 100.0}
    assert quantile([7.0], 0.99) == 7.0


async def test_the_proxy_finds_the_largest_message_towards_the_server() -> None:
    async def echo(request: bytes, _context: object) -> bytes:
        return request * 3

    server = grpc.aio.server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        proxy = counting_proxy(f"127.0.0.1:{port}")
        async with proxy as (address, counter), grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary("/bench.Test/Echo")
            for size in (10, 300_000, 2_000):
                assert len(await call(b"x" * size, wait_for_ready=True)) == 3 * size
        assert counter.largest == 300_000
        assert counter.sent > 302_010
    finally:
        await server.stop(None)


async def test_what_cannot_be_measured_is_a_row_that_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(folder: Path, plan: Plan) -> list[Row]:
        raise RuntimeError("no disk")

    async def works(folder: Path, plan: Plan) -> list[Row]:
        return [ROW]

    functions = {"a:breaks": breaks, "a:works": works}
    monkeypatch.setattr(Measure, "load", lambda self: functions[self.function])
    shown: list[Row] = []
    chosen = [Measure("a:breaks", "the disk"), Measure("a:works", "the rest")]
    rows = await measure(chosen, tmp_path, QUICK, shown.append)
    assert shown == rows
    assert [row.failed for row in rows] == [True, False]
    assert "no disk" in rows[0].line()
    assert exit_code(rows, check=False) == 1


async def test_executions_of_a_load_that_fail_are_counted_and_fail_the_run() -> None:
    done = iter(range(6))

    async def one() -> tuple[float, float]:
        if next(done) % 3 == 0:
            raise TurnFailedError("EXECUTION_FAILED: no such model")
        return 2.0, 1.0

    half = await run_round(one, 6, at_once=2)
    assert (half.turns, half.firsts) == ([2.0] * 4, [1.0] * 4)
    row = failures_row(Load([half], [half]), "here")
    assert (row.value, row.unit) == (2, "of 6")
    assert "no such model" in row.line()
    assert exit_code([row], check=False) == 1


def test_a_profile_gives_the_time_of_built_in_functions_to_who_called_them() -> None:
    ours = ("/here/src/agent_runner/adapters/status/native.py", 1, "emit")
    library = ("/env/lib/python3.11/site-packages/langgraph/pregel/main.py", 2, "tick")
    built_in = ("~", 0, "<built-in method time.sleep>")
    found = by_package(
        {
            ours: (1, 1, 1.0, 4.0, {}),
            library: (1, 1, 2.0, 5.0, {ours: (1, 1, 2.0, 5.0)}),
            built_in: (2, 2, 3.5, 3.5, {ours: (1, 1, 3.0, 3.0), library: (1, 1, 0.5, 0.5)}),
        }
    )
    assert found == {"agent_runner.adapters.status": 4.0, "langgraph": 2.5}
