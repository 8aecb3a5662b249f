"""Opens pages in a headless Chromium, as readers do."""

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PROBE = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message || event.target.src)), true);
for (const kind of ["error", "warn"]) console[kind] = (...words) => errors.push(words.join(" "));
addEventListener("load", () => {
  const root = document.documentElement;
  const sizes = (query) => [...document.querySelectorAll(query)].map((each) => {
    const box = each.getBoundingClientRect();
    return [box.left, box.right, box.height];
  });
  const entries = performance.getEntriesByType("resource").map((each) => each.name);
  parent.postMessage(JSON.stringify({
    errors, width: innerWidth, wanted: root.scrollWidth,
    drawings: sizes("figure svg"), pictures: sizes("figure img"), texts: sizes("p, li, h1, h2, figcaption"),
    loaded: [...document.images].every((each) => each.naturalWidth > 0),
    fetched: entries.filter((name) => !name.startsWith("data:"))}), "*");
});
</script>"""
# A window is never narrower than 500 pixels; a frame in it may be.
FRAME = """<!doctype html><html><head><meta name="color-scheme" content="light dark"></head>
<body style="margin: 0">
<script>
addEventListener("message", (event) => {
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = event.data;
  document.body.append(pre);
});
</script>
<iframe src="page.html" style="border: 0; display: block" width="WIDTH" height="HEIGHT"></iframe>
</body></html>"""


def browser() -> str:
    """The program; without it the test is skipped, unless the environment says that it must run."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    message = f"THE REPORT WAS NOT OPENED IN A BROWSER: none of {', '.join(NAMES)} is installed"
    if os.environ.get("CLEAVE_BROWSER") == "required":
        pytest.fail(message)
    pytest.skip(message)


def opened(page: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What a page of this width looks like from inside."""
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + PROBE, 1)
    dom = _run(text, width, 1000, "--dump-dom", dark=dark)
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    return told


def screenshot(page: Path, width: int, height: int, *, dark: bool = False) -> Image.Image:
    """A picture of the page's beginning."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        _run(page.read_text(encoding="utf-8"), width, height, f"--screenshot={file}", dark=dark)
        return Image.open(file).convert("RGB").crop((0, 0, width, height))


def _run(text: str, width: int, height: int, what: str, *, dark: bool) -> str:
    with tempfile.TemporaryDirectory() as folder:
        frame = FRAME.replace("WIDTH", str(width)).replace("HEIGHT", str(height))
        (Path(folder) / "page.html").write_text(text, encoding="utf-8")
        (Path(folder) / "frame.html").write_text(frame, encoding="utf-8")
        line = [
            browser(),
            *QUIET,
            f"--user-data-dir={folder}/profile",
            f"--window-size={max(width, 500)},{height}",
        ]
        line += ["--virtual-time-budget=10000", *(["--blink-settings=preferredColorScheme=0"] * dark)]
        line += [what, (Path(folder) / "frame.html").as_uri()]
        done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout
