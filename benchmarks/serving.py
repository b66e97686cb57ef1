"""How many questions a second: ``dslight serve`` asked over the network, the model asked in a process, and ``dslight
predict`` in a loop, which starts a process for every question.

    OMP_NUM_THREADS=1 python -m benchmarks.serving runs/my_arm exported/my_arm page.png --question "B2"

A request sends the picture again, as a client does. Needs dslight[serve].
"""

from __future__ import annotations

import argparse
import base64
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def rate(ask: Callable[[], Any], count: int, at_a_time: int = 1) -> float:
    """Questions a second; the first one is not counted."""
    ask()
    with ThreadPoolExecutor(at_a_time) as pool:
        began = time.perf_counter()
        list(pool.map(lambda _: ask(), range(count)))
        return count / (time.perf_counter() - began)


def main() -> None:
    """Print a row per way of asking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("exported", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--question", required=True)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()

    import openai

    import dslight
    from dslight.run.serve import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(args.exported, port=port, background=True)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20)
    url = f"data:image/png;base64,{base64.b64encode(args.image.read_bytes()).decode()}"
    content: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": args.question}]
    messages: Any = [{"role": "user", "content": content}]
    model, asked = (
        dslight.load(args.run),
        {"model": str(args.exported), "messages": messages, "max_tokens": args.tokens},
    )
    command = [sys.executable, "-m", "dslight", "predict", str(args.run / "recipe.yaml"), "--image", str(args.image)]
    command += ["--question", args.question, "--max-new-tokens", str(args.tokens), f"run_dir={args.run}"]

    rows = ["| asked | questions/s |", "| --- | ---: |"]
    answer = model.answer(args.question, args.image, max_new_tokens=args.tokens)
    said = client.chat.completions.create(**asked).choices[0].message.content
    assert said is not None
    assert said.strip() == answer, (said, answer)
    for at_a_time in (1, 4):
        found = rate(lambda: client.chat.completions.create(**asked), args.count, at_a_time)
        rows.append(f"| dslight serve, {at_a_time} at a time | {found:.2f} |")
    in_process = rate(lambda: model.answer(args.question, args.image, max_new_tokens=args.tokens), args.count)
    rows.append(f"| model.answer in one process | {in_process:.2f} |")
    loop = rate(lambda: subprocess.run(command, check=True, capture_output=True), 3)
    rows.append(f"| dslight predict in a loop | {loop:.2f} |")
    server.kill_server()
    print("\n".join(rows))  # the server writes a line for every request


if __name__ == "__main__":
    main()
