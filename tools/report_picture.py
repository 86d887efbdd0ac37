"""Takes the picture of a run's page that README and docs/report.md show, in headless Chromium without a network.

    python tools/report_picture.py runs/hot docs/images/report.png

Needs playwright and Chromium.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from bert_toolkit.run_page import write_run_page


def main() -> None:
    """Writes the page and its picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--height", type=int, default=1660, help="pixels of the page to show, from its top")
    chosen = parser.parse_args()
    page = write_run_page(chosen.run).resolve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_context(viewport={"width": 1200, "height": chosen.height}, offline=True).new_page()
        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-drawn]")
        tab.screenshot(path=chosen.picture)
        browser.close()


if __name__ == "__main__":
    main()
