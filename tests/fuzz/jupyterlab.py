"""Drive the notebook in JupyterLab as a reader would, in a Chromium without a window.

    python tests/fuzz/jupyterlab.py

Run All, twice, with the players; then the width of the page as HTML and its pages in print. Prints
a line for each; the status is 1 if one is a fault.
"""

import json
import os
import re
import shutil
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
from notebook_tools import NOTEBOOK, SMOKE, code_cells, make_project, read_notebook, tags

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LAB = "http://127.0.0.1:18888/lab"
SHEETS = 28  # of A4, that the page may have in print
STATE = """const nb = jupyterapp.shell.currentWidget?.context;
  const code = (nb?.model.toJSON().cells ?? []).filter(c => c.cell_type == 'code');
  const outputs = code.flatMap(c => c.outputs);
  return {done: window.done ?? false, status: nb?.sessionContext.session?.kernel?.status,
    counts: code.filter(c => c.source.length).map(c => c.execution_count ?? 0),
    errors: outputs.filter(o => o.output_type == 'error').map(o => o.ename + ': ' + o.evalue)}"""
PLAY = """const wait = () => new Promise(r => setTimeout(r, 2000)), found = [];
  jupyterapp.shell.currentWidget.content.scrollToItem(0);
  await wait();
  for (const player of document.querySelectorAll('audio')) {
    await player.play();
    await wait();
    player.pause();
    found.push([player.duration, player.currentTime]);
  }
  return found"""


class Page:
    """A tab of the browser, spoken to in the DevTools protocol."""

    def __init__(self, port: str) -> None:
        """Connect to the first tab."""
        tabs = json.load(urlopen(f"http://127.0.0.1:{port}/json"))
        url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self.socket = websocket.create_connection(url, suppress_origin=True)
        # JupyterLab knows the current notebook by its focus, which a page behind has not
        self.call("Page.bringToFront")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: object) -> dict:
        """Return the answer to a command."""
        self.socket.send(json.dumps({"id": 1, "method": method, "params": parameters}))
        while "id" not in (answer := json.loads(self.socket.recv())):
            pass  # an event
        return answer["result"]

    def js(self, body: str) -> object:
        """Return what the body of an asynchronous function returns in the page."""
        options = {"awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", expression=f"(async () => {{{body}}})()", **options)
        return answer["result"].get("value")

    def show(self, url: str, width: int) -> None:
        """Open an address in a window of this width."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)
        time.sleep(20)

    def wait(self, command: str, **arguments: str) -> dict:
        """Run a command of JupyterLab; return the state of the notebook when it is done."""
        run = f"jupyterapp.commands.execute('{command}', {json.dumps(arguments)})"
        self.js(f"window.done = false; {run}.then(() => window.done = true);")
        while not (state := self.js(STATE) or {}).get("done") or state.get("status") != "idle":
            time.sleep(1)
        return state


def checks(page: Page, project: Path) -> Iterator[tuple[bool, str]]:
    """Yield whether each check holds, and what was found."""
    page.show(LAB, 1280)
    page.wait("docmanager:open", path=NOTEBOOK.name, factory="Notebook")
    for _ in range(2):
        state = page.wait("notebook:run-all-cells")
        yield all(state["counts"]) and not state["errors"], f"Run All: {state}"
        heard = page.js(PLAY)
        good = [(length or 0) > 10 and at > 0 for length, at in heard]
        yield len(good) >= 3 and all(good), f"players (seconds, played): {heard}"
    page.wait("docmanager:save")
    report = project / "report.html"
    report.write_text(nbconvert.HTMLExporter().from_filename(project / NOTEBOOK.name)[0], "utf-8")
    for width in (1280, 400):
        page.show(report.as_uri(), width)
        widest = page.js("return document.scrollingElement.scrollWidth")
        yield widest <= width, f"report {widest} wide in {width}"
    printed = b64decode(page.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
    count = len(re.findall(rb"/Type\s*/Page\b", printed))
    yield 0 < count <= SHEETS, f"{count} printed pages"


def main() -> None:
    """Start JupyterLab and the browser, and print the checks."""
    failed = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as ends:
        project, notebook = make_project(Path(folder) / "project"), read_notebook()
        for cell in code_cells(notebook):
            cell.update(outputs=[], execution_count=None)
            cell.source += f"\nchanges = {SMOKE!r}" if "parameters" in tags(cell) else ""
        nbformat.write(notebook, project / NOTEBOOK.name)
        lab = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        lab += [f"--ServerApp.root_dir={project}", "--ServerApp.port=18888"]
        lab += ["--LabApp.expose_app_in_browser=True", "--IdentityProvider.token="]
        chromium = [next(filter(None, map(shutil.which, BROWSERS))), "--headless=new"]
        chromium += ["--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        chromium += ["--autoplay-policy=no-user-gesture-required"]
        # nobody's settings are read or changed
        kinds = ("JUPYTERLAB_SETTINGS", "JUPYTERLAB_WORKSPACES", "JUPYTER_CONFIG")
        environment = os.environ | {"TMPDIR": folder} | {f"{kind}_DIR": folder for kind in kinds}
        for command in (lab, chromium):
            options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = ends.enter_context(subprocess.Popen(command, env=environment, **options))
            ends.callback(process.terminate)
        time.sleep(20)
        page = Page(Path(folder, "DevToolsActivePort").read_text().split()[0])
        for good, found in checks(page, project):
            print("good" if good else "FAULT", found, flush=True)
            failed += not good
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
