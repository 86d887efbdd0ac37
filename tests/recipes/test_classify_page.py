"""The page on classification runs as it stands, block after block."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.launch
def test_every_block_of_the_page_runs(tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    page = (ROOT / "docs" / "classify.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = []
    for language, block in blocks:
        command = ["bash", "-euo", "pipefail", "-c", block] if language == "bash" else [sys.executable, "-c", block]
        process = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=900, env={**os.environ, "PATH": path}
        )
        refused = "error: " in process.stdout  # the one block that shows an error: the launcher's status is not 0
        assert process.returncode == 0 or refused, f"{block}\n{process.stderr[-3000:]}"
        printed.append(process.stdout)
    assert "1 class" not in printed[0] and "2 classes" in printed[0]
    labeled = printed[1].splitlines()[-2:]
    assert [line.split("\t")[0] for line in labeled] == ["the book was great", "the song was awful"]
    assert {line.split("\t")[1] for line in labeled} <= {"positive", "negative"}
    assert re.search(r"error: .*broken.csv:3 has nothing in column 'text'", printed[-1])
    for run in ("reviews", "pairs", "tags"):
        assert (tmp_path / "runs" / run / "results.json").exists()
    assert not (tmp_path / "runs" / "broken" / "results.json").exists()
