"""The page of the rules says what the rules say."""

import runpy
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "training_health_page.py"


def test_page_is_written_from_the_rules_as_they_are():
    tool = runpy.run_path(str(TOOL))
    assert tool["PAGE"].read_text(encoding="utf-8") == tool["page"](), "run python tools/training_health_page.py"
