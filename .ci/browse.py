"""Opens each page of a built site in headless Chromium, and says what is wrong there.

    python .ci/browse.py SITE [--pictures FOLDER]

Errors of the console, requests that fail, links within the site that lead nowhere, and
formulas that are still TeX. `--pictures` keeps screenshots of five pages: light, dark,
and of a phone's width. Without Chromium it says so, and does nothing.
"""

import argparse
import functools
import http.server
import pathlib
import shutil
import subprocess
import tempfile
import threading
from html.parser import HTMLParser
from typing import ClassVar
from urllib.parse import unquote, urljoin, urlsplit


SHOWN = ("", "maths/", "varpro/", "benchmarks/", "api/")
LOOKS = {
    "desk": ["--window-size=1280,1600"],
    "dark": ["--window-size=1280,1600", "--blink-settings=preferredColorScheme=0"],
    "phone": ["--window-size=500,1200"],  # Chromium has no narrower window
}

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)


class Page(HTMLParser):
    """The links of a page, and what can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.names = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.names.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


def chromium(browser, *arguments, url):
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [browser, *_OPTIONS, f"--user-data-dir={profile}", *arguments, url],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )


def faults(browser, root, folder, pages):
    for place, page in pages.items():
        opened = chromium(browser, "--dump-dom", url=root + place)
        for line in opened.stderr.splitlines():
            if "CONSOLE" in line:
                yield place, line
        if 'class="arithmatex"' in opened.stdout:
            yield place, "a formula is still TeX"
        while Handler.missing:
            yield place, f"a request failed, {Handler.missing.pop()}"
        for link in Page(opened.stdout).links | page.links:
            target = urlsplit(urljoin(root + place, link))
            if f"{target.scheme}://{target.netloc}/" != root:
                continue
            path = unquote(target.path).lstrip("/")
            if path in pages:
                if target.fragment and unquote(target.fragment) not in pages[path].names:
                    yield place, f"{link}: no such place on the page"
            elif not (folder / path).exists():
                yield place, f"{link}: no such file"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=pathlib.Path)
    parser.add_argument("--pictures", type=pathlib.Path)
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("No Chromium here: the pages are not opened.")
        return
    folder = arguments.site.resolve()
    handler = functools.partial(Handler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}/"
    pages = {
        f"{path.parent.relative_to(folder).as_posix()}/".removeprefix("./"): Page(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(folder.rglob("index.html"))
    }
    found = list(faults(browser, root, folder, pages))
    for place, fault in found:
        print(f"{place or 'index'}: {fault}")
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        for place in SHOWN:
            for name, options in LOOKS.items():
                picture = f"{place.strip('/') or 'index'}_{name}.png"
                chromium(
                    browser,
                    f"--screenshot={arguments.pictures.resolve() / picture}",
                    *options,
                    url=root + place,
                )
    print(f"{len(pages)} pages opened, {len(found)} faults.")
    raise SystemExit(bool(found))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Keeps what it was asked for and does not have."""

    missing: ClassVar = []

    def send_error(self, code, message=None, explain=None):
        self.missing.append(f"{self.path}: {code}")
        super().send_error(code, message, explain)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    main()
