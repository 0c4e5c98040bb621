"""The model that runs here, for real: 1.1 GB of weights and minutes of work, so only when asked for.

`LOCAL_MODEL_FILE=/path/to/model.gguf pytest tests/acceptance/test_local_model.py -s` also tells times.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil
import pytest
from acceptance.test_cli import Home, _clean_up

FILE = os.environ.get("LOCAL_MODEL_FILE", "")
PHRASINGS = (
    "Create hello.txt containing Hello",
    "create a file hello.txt with the text Hello",
    "Please make a file named hello.txt that says Hello",
    "Write Hello into hello.txt",
    "Put the word Hello in a new file called hello.txt",
    "I need a file hello.txt. Its content should be: Hello",
    "Save the text 'Hello' as hello.txt",
    "Make hello.txt. It should contain just Hello.",
    "Could you create hello.txt with Hello in it?",
    "hello.txt should exist and contain Hello",
    "Generate a text file, hello.txt, whose only line is Hello",
    "Create the file /workspace/hello.txt with content Hello",
)


@pytest.mark.skipif(not FILE, reason="LOCAL_MODEL_FILE names no weights")
@pytest.mark.timeout(1800)
def test_twelve_phrasings_of_one_task(tmp_path: Path) -> None:
    home = Home(tmp_path)
    try:
        home.ok("model", "pull", "--from", FILE)
        home.ok("up", "--detach", "--port", "0")
        right, peak = [], 0
        for phrasing in PHRASINGS:
            began = time.monotonic()
            done = home.run("run", phrasing, "-o", "json")
            status = json.loads(done.stdout)["status"] if done.stdout else {}
            written = [path.read_text() for path in home.data_dir.glob("sandboxes/**/hello.txt")]
            right.append(any(text.strip() == "Hello" for text in written))
            for path in home.data_dir.glob("sandboxes/**/hello.txt"):
                path.unlink()
            peak = max(peak, _model_bytes(home))
            said = status.get("messages", [{}])[-1].get("content", "")
            print(f"{right[-1]!s:5} {time.monotonic() - began:5.1f} s  {phrasing!r}: {said[:100]!r}")
            assert status["run"]["model"] == "local:qwen2.5-coder-1.5b"
            assert "demo quality" in done.stderr + json.dumps(status)
        print(f"{sum(right)} of {len(right)} right; the model's process took {peak / 1e9:.1f} GB")
        assert sum(right) >= 10
    finally:
        _clean_up(home)
    home.wait_for_no_process()


def _model_bytes(home: Home) -> int:
    return sum(
        process.memory_info().rss
        for process in psutil.process_iter(["cmdline"])
        if str(home.data_dir) in " ".join(process.info["cmdline"] or ())
        and "local_server" in str(process.info)
    )
