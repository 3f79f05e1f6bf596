"""Drive the notebook in JupyterLab as a reader would, in a Chromium without a window.

    python tests/fuzz/jupyterlab.py [--pictures FOLDER]

Run All, the players, Restart and Run All, interrupts while it trains, the width of the page as HTML
and the number of pages in print. Prints a line for each check and leaves screenshots and a PDF; the
status is 1 if a check failed.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import nbconvert
import nbformat
import websocket  # JupyterLab's server depends on it

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import NOTEBOOK, SMOKE, make_project, read_notebook, tags

LONG = SMOKE | {"epochs": 400, "patience": 400}  # nobody waits for the end
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LIMIT = 3600  # seconds for a run
SHEETS = 28  # of A4, that the page may have in print
NB = "const nb = jupyterapp.shell.currentWidget, cells = nb?.context?.model.toJSON().cells ?? [];"
STATE = """document.querySelector('.jp-Dialog .jp-mod-accept')?.click();
  const code = cells.filter(c => c.cell_type == 'code' && c.source.length);
  const outputs = code.flatMap(c => c.outputs);
  return {path: nb?.context?.path ?? '', done: window.done ?? false,
    status: nb?.context?.sessionContext.session?.kernel?.status ?? 'none',
    counts: code.map(c => c.execution_count ?? 0),
    errors: outputs.filter(o => o.output_type == 'error').map(o => o.ename + ': ' + o.evalue),
    text: outputs.flatMap(o => o.text ?? []).flat().join('')}"""
PLAY = """const wait = s => new Promise(r => setTimeout(r, 1000 * s)), found = [];
  const players = () => [...nb.node.querySelectorAll('audio')];
  nb.content.scrollToItem(0);
  for (let i = 0; i < 300 && players().length < 3; i++) await wait(0.1);
  for (const player of players()) {
    player.load();
    for (let i = 0; i < 300 && player.readyState < 1; i++) await wait(0.1);
    player.play();
    for (let i = 0; i < 300 && player.currentTime < 0.5; i++) await wait(0.1);
    found.push([player.readyState, player.duration, player.currentTime]);
    player.pause();
  }
  return found"""
WIDE = """const box = e => e.getBoundingClientRect(), clips = e => e && e !== document.body &&
    (getComputedStyle(e).overflowX != 'visible' || clips(e.parentElement));
  return [document.scrollingElement.scrollWidth, innerWidth,
    [...document.querySelectorAll('body *')]
      .filter(e => box(e).right > innerWidth + 1 && !clips(e.parentElement)).slice(0, 6)
      .map(e => `${e.tagName} ${e.className} ${Math.round(box(e).right)}`)]"""


class Page:
    """A tab of the browser, spoken to in the DevTools protocol."""

    def __init__(self, port: str) -> None:
        """Connect to the first tab."""
        tabs = json.load(urlopen(f"http://127.0.0.1:{port}/json"))
        url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self.socket, self.number = websocket.create_connection(url, suppress_origin=True), 0
        # JupyterLab knows the current notebook by its focus, which a page behind has not
        self.call("Page.bringToFront")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: object) -> dict:
        """Return the answer to a command."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.number:
            pass  # an event
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def js(self, body: str) -> object:
        """Return what the body of an asynchronous function returns in the page."""
        options = {"awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", expression=f"(async () => {{{body}}})()", **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def show(self, url: str, width: int, height: int) -> None:
        """Open an address in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)
        while self.js("return document.readyState") != "complete":
            time.sleep(1)
        time.sleep(2)

    def picture(self, path: Path) -> None:
        """Save what the window shows."""
        path.write_bytes(b64decode(self.call("Page.captureScreenshot")["data"]))

    def start(self, command: str, **arguments: str) -> None:
        """Start a command of JupyterLab and note when it is done."""
        run = f"jupyterapp.commands.execute('{command}', {json.dumps(arguments)})"
        self.js(f"window.done = false; {run}.then(() => window.done = true);")

    def finished(self, interrupt: bool = False) -> dict:
        """Return the state of the notebook after its run, its trainings interrupted or not.

        What JupyterLab asks meanwhile is agreed to.
        """
        seen, made, end = 0, 0, time.monotonic() + LIMIT
        while not (state := self.js(NB + STATE))["done"] or state["status"] != "idle":
            if interrupt and state["text"].count("epoch") > seen + 2:
                self.js("jupyterapp.commands.execute('notebook:interrupt-kernel')")
                time.sleep(3)
                made, seen = made + 1, self.js(NB + STATE)["text"].count("epoch")
            if time.monotonic() > end:
                return state | {"errors": ["did not end"]}
            time.sleep(0.5)
        return state | {"interrupts": made}


def write_copy(path: Path, changes: dict[str, object]) -> None:
    """Write the notebook without its outputs and with these changes to its configuration."""
    notebook = read_notebook()
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.update(outputs=[], execution_count=None)
        if "parameters" in tags(cell):
            cell.source += f"\nchanges = {changes!r}"
    nbformat.write(notebook, path)


def serve(project: Path, home: Path, ends: ExitStack) -> tuple[str, Page]:
    """Start JupyterLab and the browser; return the address of the one and a page of the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], secrets.token_hex()
    options = {"ServerApp.root_dir": project, "ServerApp.port": port, "ServerApp.port_retries": 0}
    options |= {"LabApp.expose_app_in_browser": True, "IdentityProvider.token": token}
    # nobody's settings are read or changed
    folders = [f"JUPYTERLAB_{kind}_DIR" for kind in ("SETTINGS", "WORKSPACES")]
    folders += ["JUPYTER_CONFIG_DIR", "TMPDIR"]
    lab = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    lab += [f"--{name}={value}" for name, value in options.items()]
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    chromium = [browser, "--headless=new", "--no-sandbox", "--remote-debugging-port=0"]
    chromium += [f"--user-data-dir={home}", "--autoplay-policy=no-user-gesture-required"]
    for command in (lab, chromium):
        environment = os.environ | {name: str(home) for name in folders}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = ends.enter_context(subprocess.Popen(command, env=environment, **quiet))
        ends.callback(process.terminate)
    ready, address = home / "DevToolsActivePort", ("127.0.0.1", port)
    while not ready.exists() or socket.socket().connect_ex(address):
        assert process.poll() is None, "the browser did not start"
        time.sleep(1)
    return f"http://127.0.0.1:{port}/lab?token={token}", Page(ready.read_text().split()[0])


def checks(page: Page, url: str, project: Path, pictures: Path) -> Iterator[tuple[bool, str]]:
    """Yield whether each check holds, and what was found."""
    page.show(url, 1280, 900)
    while not page.js("return window.jupyterapp && await jupyterapp.restored.then(() => true)"):
        time.sleep(1)

    def opened(name: str) -> None:
        """Open a notebook, in front of what else JupyterLab opens, and wait for its kernel."""
        while (state := page.js(NB + STATE))["status"] != "idle" or state["path"] != name:
            page.start("docmanager:open", path=name, factory="Notebook")
            time.sleep(3)

    opened(NOTEBOOK.name)
    for command in ("notebook:run-all-cells", "notebook:restart-run-all"):
        page.start(command)
        state = page.finished()
        whole = state["counts"] == list(range(1, len(state["counts"]) + 1))
        found = f"{command}: {state['counts'][-1]} cells, errors: {state['errors']}"
        yield whole and not state["errors"], found
        heard = page.js(NB + PLAY)
        good = [ready >= 1 and (length or 0) > 10 and at > 0 for ready, length, at in heard]
        yield len(good) >= 3 and all(good), f"players (state, seconds, played): {heard}"
        page.picture(pictures / f"{command.split(':')[1]}.png")
    page.start("docmanager:save")
    page.finished()
    opened("interrupted.ipynb")
    page.start("notebook:run-all-cells")
    state = page.finished(interrupt=True)
    found = f"{state['interrupts']} interrupts: {state['counts'][-1]} cells"
    good = state["interrupts"] > 0 and not state["errors"] and all(state["counts"])
    yield good, f"{found}, errors: {state['errors']}"
    report = project / "report.html"
    report.write_text(nbconvert.HTMLExporter().from_filename(project / NOTEBOOK.name)[0], "utf-8")
    for width in (1280, 400):
        page.show(report.as_uri(), width, 6000)
        page.picture(pictures / f"report_{width}.png")
        most, window, wide = page.js(WIDE)
        yield most <= window, f"report {most} wide in {window}: {wide}"
    printed = b64decode(page.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
    (pictures / "report.pdf").write_bytes(printed)
    count = len(re.findall(rb"/Type\s*/Page\b", printed))
    yield 0 < count <= SHEETS, f"{count} printed pages"


def main() -> None:
    """Print the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="where screenshots go; a temporary folder")
    pictures = parser.parse_args().pictures or Path(tempfile.mkdtemp())
    pictures.mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as ends:
        project = make_project(Path(folder) / "project")
        write_copy(project / NOTEBOOK.name, SMOKE)
        write_copy(project / "interrupted.ipynb", LONG)
        url, page = serve(project, Path(folder), ends)
        for good, found in checks(page, url, project, pictures):
            print("good" if good else "FAULT", found, flush=True)
            failed += not good
    print(f"{failed} checks failed; screenshots in {pictures}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
