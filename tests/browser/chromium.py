"""The distribution's Chromium without a window, driven over a pipe: open a page, wait for words, take a picture.

The DevTools protocol is JSON between zero bytes, so that forty lines do what a test needs and no driver is installed.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

TEXT = 'document.body ? document.body.innerText : ""'
CLOSE = """(found => found && found.click())(
    document.querySelector('[data-component-id="mlflow.assistant.chat_panel.close"]'))"""
HIDE = """document.head.appendChild(document.createElement("style")).textContent =
    ".modebar-container { display: none }" """  # a chart's tools, which show under a mouse, and there is none


class Chromium:
    """Use as a context."""

    def __init__(self, profile: Path, width: int = 1440, height: int = 900) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program, "no Chromium on this machine: apt-get install chromium"
        theirs_in, self.out = os.pipe()
        self.inp, theirs_out = os.pipe()
        words = [program, "--headless=new", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        words += ["--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--no-proxy-server"]
        words += ["--disable-features=IsolateSandboxedIframes", "--disable-site-isolation-trials", "about:blank"]
        wired = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", wired, "bash", *words], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest, self.number, self.session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        self.session = ""
        if self.process.poll() is None:
            self.call("Browser.close")
        self.process.wait(timeout=30)
        os.close(self.inp)
        os.close(self.out)

    def call(self, method: str, seconds: float = 60, **params: object) -> dict:
        """One command and its answer; events in between are dropped."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            while b"\0" not in self.rest:
                ready, *_ = select.select([self.inp], [], [], max(0, end - time.monotonic()))
                assert ready, f"{method}: no answer in {seconds:g} s"
                got = os.read(self.inp, 1 << 20)
                assert got, "Chromium has ended"
                self.rest += got
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def run(self, script: str, **where: object) -> object:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, **where)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")  # a new fragment alone would load nothing
        self.call("Page.navigate", url=url)

    def text(self) -> str:
        """All that can be read, in frames too."""
        tree = self.call("Page.getFrameTree")["frameTree"]
        text = str(self.run(TEXT))
        for child in tree.get("childFrames", []):  # a sandboxed frame shows nothing to the page around it
            world = self.call("Page.createIsolatedWorld", frameId=child["frame"]["id"])["executionContextId"]
            text += "\n" + str(self.run(TEXT, contextId=world))
        return text

    def wait(self, *words: str, seconds: float = 60) -> str:
        """The text, once it has all of these words."""
        end = time.monotonic() + seconds
        while True:
            text = self.text()
            missing = [word for word in words if word not in text]
            if not missing:
                return text
            assert time.monotonic() < end, f"not on the page: {missing}; it says:\n{text}"
            time.sleep(0.3)

    def close_assistant(self) -> None:
        """MLflow opens its chat beside the first page of a new person, and it takes a third of it."""
        self.run(CLOSE)

    def picture(self, file: Path) -> None:
        self.run(HIDE)
        time.sleep(1)  # for charts that are still moving
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
