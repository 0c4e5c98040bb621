from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from agent_runner.logs import MASK, Redaction, configure


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, quieter = root.handlers[:], root.level, logging.getLogger("httpx").level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(quieter)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_each_line_is_one_json_object() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    structlog.get_logger().info("execution finished", execution_id="aex-1", seconds=1.5)

    (line,) = lines(stream)
    assert line.pop("timestamp")
    assert line == {"message": "execution finished", "level": "info", "execution_id": "aex-1", "seconds": 1.5}


@pytest.mark.parametrize("colors", [True, False])
def test_lines_for_people_have_colours_as_they_were_asked_for(colors: bool) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return not colors  # what was asked for counts more

    stream = Screen()
    configure(format="console", stream=stream, colors=colors)
    structlog.get_logger().info("stack is ready", address="127.0.0.1:1")

    assert ("\x1b[" in stream.getvalue()) is colors


def test_the_console_form_is_for_people() -> None:
    stream = io.StringIO()
    configure(format="console", stream=stream)

    structlog.get_logger().info("execution finished", execution_id="aex-1")

    assert "execution finished" in stream.getvalue()
    assert "execution_id=aex-1" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_libraries_log_in_the_same_form_and_chatty_ones_only_warn() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    logging.getLogger("some.library").info("connected to %s", "it")
    logging.getLogger("httpx").info("HTTP Request: GET …")
    logging.getLogger("httpx").warning("slow")

    assert [line["message"] for line in lines(stream)] == ["connected to it", "slow"]


def test_lines_below_the_level_are_left_out() -> None:
    stream = io.StringIO()
    configure("warning", stream=stream)

    structlog.get_logger().info("too small")
    logging.getLogger("x").info("too small")

    assert stream.getvalue() == ""


def test_what_a_redactor_knows_is_masked_everywhere_tracebacks_included() -> None:
    stream = io.StringIO()
    hook = configure(stream=stream)
    remove = hook.add(lambda text: text.replace("hunter2", MASK))
    log = structlog.get_logger()

    log.info("it is hunter2", error=ValueError("hunter2"), nested={"a": ["hunter2"]})
    try:
        raise RuntimeError("hunter2")
    except RuntimeError:
        log.exception("failed")
    logging.getLogger("library").warning("hunter2")

    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count(MASK) >= 5
    remove()
    log.info("it is hunter2")
    assert "hunter2" in stream.getvalue()


def test_names_of_secrets_are_masked_without_a_redactor() -> None:
    hook = Redaction()
    event = {
        "event": "token",
        "api_key": "k",
        "Authorization": "Bearer x",
        "headers": {"x-api-key": "k", "api_key": "k"},
        "input_tokens": 12,
        "secret_name": "S",
    }

    assert hook(None, "info", dict(event)) == {
        "event": "token",
        "api_key": MASK,
        "Authorization": MASK,
        "headers": {"x-api-key": MASK, "api_key": MASK},
        "input_tokens": 12,
        "secret_name": "S",
    }
