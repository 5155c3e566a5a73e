#!/usr/bin/env python3
"""Take the pictures of the status page that the documentation shows, with Debian's Chromium.

python docs/screenshots.py URL    writes docs/images/status-{wide,phone,dark}.png
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path(__file__).resolve().parent / "images"
PICTURES: dict[str, dict[str, Any]] = {
    "wide": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "is_mobile": True, "has_touch": True},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the pictures; return the exit code."""
    parser = argparse.ArgumentParser(description="Take pictures of the status page.")
    parser.add_argument("url", help="the status page, for instance http://127.0.0.1:18091/")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they go (docs/images)")
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium")
    if not chromium:
        sys.stderr.write("chromium is missing: tools/system-packages integration installs it\n")
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        # Chromium's sandbox does not start as root.
        arguments_of_root = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments_of_root)
        for name, settings in PICTURES.items():
            page = browser.new_context(**settings).new_page()
            page.goto(options.url)
            page.wait_for_selector("article.in-view canvas")
            if name == "phone":
                # A picture of the whole page. The page draws only the charts in view, so make the window as high.
                height = page.evaluate("document.documentElement.scrollHeight")
                page.set_viewport_size({"width": settings["viewport"]["width"], "height": height})
                page.locator(".chart canvas").nth(page.locator(".chart").count() - 1).wait_for()
            page.screenshot(path=options.folder / f"status-{name}.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
