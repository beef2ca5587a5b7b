"""`llmkit serve` under many clients, and what it costs those who do not serve.

    python -m benchmarks.serving throughput [--model starter] [--runs 3] [--tokens 64]
    python -m benchmarks.serving load [--model tiny] [--clients 200] [--seconds 300]
    python -m benchmarks.serving footprint --before COMMIT [--runs 7]

`throughput`: 8 clients at once against the same requests one after another, in turn, in tokens per CPU second of the
server's process (which other programs on the machine disturb least); time to the first token; a short request that
comes while a long one runs; a system prompt that 8 requests share. `load`: clients that stream, wait, tokenize or leave
in the middle, without a pause; every answer is counted, and the server's memory is read every second. `footprint`:
import, `--help` and wheel of two commits, in turn. Servers listen on 127.0.0.1 only. With ``--write``, the table
replaces the section of its name in benchmarks/serving.md.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "serving.md"
TOPICS = ("a ship", "a garden", "the moon", "an old clock", "two brothers", "a river", "a lost letter", "a fox")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "今天", "天气", "1", "2", "3")
SYSTEM = "You answer questions on the history of a small harbour town. " + " ".join(
    f"In {1700 + year} the town had {3 * year + 120} houses, {year % 7 + 2} mills and {year % 11 + 5} ships."
    for year in range(0, 120, 4)
)


@dataclass
class Server:
    """A server of one model, in a process of its own."""

    address: str
    model: str
    process: psutil.Process

    def cpu(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.address, timeout=900, limits=httpx.Limits(max_connections=None))


@contextmanager
def serving(model: str, *options: str) -> Iterator[Server]:
    """Start a server on a free port of 127.0.0.1, and stop it with SIGTERM."""
    with tempfile.TemporaryDirectory() as folder:
        if model == "tiny":
            from tests import tiny

            model = str(tiny.build("llama", Path(folder), chat=True, max_position_embeddings=2048))
        command = [sys.executable, "-m", "llmkit", "serve", model, "--host", "127.0.0.1", "--port", "0", *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\S+", line)))
                yield Server(address, model, psutil.Process(process.pid))
            finally:
                process.send_signal(signal.SIGTERM)


@dataclass
class Reply:
    """An answer to a chat request, with the seconds to its first token and to its end."""

    tokens: int
    first: float
    end: float
    usage: dict[str, Any] = field(default_factory=dict)


async def chat(client: httpx.AsyncClient, model: str, question: str, tokens: int, system: str | None = None) -> Reply:
    """A streamed answer."""
    messages = [{"role": "system", "content": system}] * (system is not None) + [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": tokens, "stream": True}
    begun, first, usage = time.monotonic(), None, dict[str, Any]()
    async with client.stream(
        "POST", "/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}
    ) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if event["choices"] and event["choices"][0]["delta"].get("content") and first is None:
                    first = time.monotonic() - begun
                usage = event.get("usage") or usage
    end = time.monotonic() - begun
    return Reply(usage["completion_tokens"], end if first is None else first, end, usage)


def questions(number: int) -> list[str]:
    """8 questions that share no beginning with those of another number."""
    return [f"{number}. Write a long story about {topic}." for topic in TOPICS]


async def one_by_one(server: Server, asked: list[str], tokens: int) -> list[Reply]:
    async with server.client() as client:
        return [await chat(client, server.model, each, tokens) for each in asked]


async def at_once(server: Server, asked: list[str], tokens: int) -> list[Reply]:
    async with server.client() as client:
        return list(await asyncio.gather(*(chat(client, server.model, each, tokens) for each in asked)))


async def rate(server: Server, work: Callable[[], Awaitable[list[Reply]]]) -> tuple[float, list[Reply]]:
    """Tokens per CPU second of the server."""
    begun = server.cpu()
    replies = await work()
    return sum(each.tokens for each in replies) / (server.cpu() - begun), replies


async def short_beside_long(server: Server) -> tuple[bool, float, float]:
    async with server.client() as client:
        long = asyncio.create_task(chat(client, server.model, "Write a very long story about a fox.", 512))
        await asyncio.sleep(3)
        begun = time.monotonic()
        await chat(client, server.model, "Name an animal.", 8)
        took, ended = time.monotonic() - begun, not long.done()
        return ended, took, (await long).end


async def throughput_rows(server: Server, runs: int, tokens: int) -> list[str]:
    await at_once(server, questions(0), 4)
    alone, together, ratios, firsts, slowest = [], [], [], [], []
    for number in range(1, runs + 1):
        one, singles = await rate(server, lambda: one_by_one(server, questions(2 * number), tokens))  # noqa: B023
        eight, replies = await rate(server, lambda: at_once(server, questions(2 * number + 1), tokens))  # noqa: B023
        base = statistics.median(each.first for each in singles)
        alone.append(one)
        together.append(eight)
        ratios.append(eight / one)
        firsts.append(statistics.median(each.first for each in replies) / base)
        slowest.append(max(each.first for each in replies) / base)
    mid = statistics.median
    ended, took, long = await short_beside_long(server)
    async with server.client() as client:
        asked = [f"How many ships were there in {1700 + 4 * number}?" for number in range(8)]
        first = await chat(client, server.model, asked[0], 8, SYSTEM)
        later = await asyncio.gather(*(chat(client, server.model, each, 8, SYSTEM) for each in asked[1:]))
    prompt = sum(each.usage["prompt_tokens"] for each in later)
    cached = sum(each.usage["prompt_tokens_details"]["cached_tokens"] for each in later)
    return [
        f"| tokens per CPU second, 8 clients against one after another | {mid(together):.1f} : {mid(alone):.1f} "
        f"= {mid(ratios):.2f} | ≥ 3 |",
        f"| time to the first token among 8 by that alone: median, slowest | {mid(firsts):.2f}, {mid(slowest):.2f} "
        "| ≤ 3 |",
        f"| a request of 8 tokens beside one of 512 | {'ended before it' if ended else 'ended after it'}: "
        f"{took:.1f} s, {long:.1f} s | before |",
        f"| shared system prompt: cached of {prompt} prompt tokens; first token of the first, median of 7 later ones "
        f"| {cached} ({cached / prompt:.0%}); {first.first:.2f} s, {mid(each.first for each in later):.2f} s | once |",
    ]


def throughput(options: argparse.Namespace) -> list[str]:
    with serving(options.model) as server:
        rows = asyncio.run(throughput_rows(server, options.runs, options.tokens))
    return ["| what | figure | target |", "|---|---|---|", *rows]


@dataclass
class Load:
    """What clients got, and the server's memory over time."""

    server: Server
    until: float
    answers: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)
    longest: float = 0.0

    async def client(self, number: int) -> None:
        """One client: requests of changing kinds, without a pause but where the server names one."""
        chance = random.Random(number)
        async with self.server.client() as client:
            while time.monotonic() < self.until:
                kind = chance.choice(("wait", "wait", "stream", "stream", "leave", "tokenize"))
                begun = time.monotonic()
                try:
                    pause = await self._request(client, chance, kind)
                except httpx.HTTPError as error:
                    self.answers[f"none ({type(error).__name__})"] += 1
                    pause = 1.0
                self.longest = max(self.longest, time.monotonic() - begun)
                await asyncio.sleep(pause)

    async def _request(self, client: httpx.AsyncClient, chance: random.Random, kind: str) -> float:
        path, body = "/tokenize", dict[str, Any]()
        if kind == "tokenize":
            body = {"prompt": "The quick brown fox " * chance.randrange(1, 200)}
        else:
            content = " ".join(chance.choices(WORDS, k=60))
            system = {"role": "system", "content": SYSTEM[: chance.choice((0, 300, 900))]}
            messages = [system, {"role": "user", "content": content}]
            settings = {"temperature": chance.choice((0, 0.8)), "max_tokens": chance.choice((4, 16, 64))}
            path, body = "/v1/chat/completions", {"messages": messages, "stream": kind != "wait", **settings}
        async with client.stream("POST", path, json={"model": self.server.model, **body}) as response:
            status = str(response.status_code)
            if status == "429" and "retry-after" not in response.headers:
                status = "429 without Retry-After"
            last = ""
            async for line in response.aiter_lines():
                last = line or last
                if kind == "leave":
                    break
            if status == "200" and kind == "stream" and last != "data: [DONE]":
                status = "200, cut"
        self.answers[status] += 1
        return float(response.headers.get("retry-after", 0))

    async def watch(self) -> None:
        begun = time.monotonic()
        while (now := time.monotonic()) < self.until:
            self.memory.append((now - begun, self.server.process.memory_info().rss))
            await asyncio.sleep(1)

    def grown(self, warm: float) -> tuple[float, float, float]:
        """Memory after the warm-up and at the end in MB (medians of a tenth of the time), and the growth."""
        after = [rss for at, rss in self.memory if at >= warm]
        tenth = max(1, len(after) // 10)
        first, last = statistics.median(after[:tenth]), statistics.median(after[-tenth:])
        return first / 1e6, last / 1e6, last / first - 1


async def load_rows(server: Server, clients: int, seconds: float) -> list[str]:
    load = Load(server, time.monotonic() + seconds)
    await asyncio.gather(load.watch(), *(load.client(number) for number in range(clients)))
    async with server.client() as client:
        metrics = (await client.get("/metrics")).text
        left = [line for line in metrics.splitlines() if line.startswith("llmkit_unfinished_requests{")]
        ready = (await client.get("/ready")).status_code
    warm = min(60.0, seconds / 5)
    first, last, growth = load.grown(warm)
    answers = ", ".join(f"{count} × {status}" for status, count in sorted(load.answers.items()))
    return [
        f"| answers to {clients} clients in {seconds:.0f} s | {answers} | only 200, and 429 with Retry-After |",
        f"| longest request | {load.longest:.1f} s | |",
        f"| memory after {warm:.0f} s, at the end | {first:.0f} MB, {last:.0f} MB: {growth:+.1%} | < 5 % |",
        f"| unfinished requests afterwards, status of /ready | {left[0].split()[-1]}, {ready} | 0, 200 |",
    ]


def load(options: argparse.Namespace) -> list[str]:
    with serving(options.model) as server:
        rows = asyncio.run(load_rows(server, options.clients, options.seconds))
    return ["| what | figure | target |", "|---|---|---|", *rows]


def unpacked(commit: str, folder: Path) -> Path:
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def wheel_bytes(source: Path) -> tuple[int, int]:
    """Size of a wheel, and of the files in it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(source)]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            return wheel.stat().st_size, sum(each.file_size for each in files.infolist())


def seconds_of(source: Path, *command: str) -> float:
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, *command], cwd=source, env={"PYTHONPATH": str(source)}, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begun


def footprint(options: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        sides = unpacked(options.before, Path(one)), unpacked("HEAD", Path(other))
        rows = []
        for name, command in (("`import llmkit`", ("-c", "import llmkit")), ("`--help`", ("-m", "llmkit", "--help"))):
            pairs = [[seconds_of(side, *command) for side in sides] for _ in range(options.runs + 1)][1:]
            before, after = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
            ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
            rows.append(f"| {name} | {before:.3f} s | {after:.3f} s | {ratio:.3f} |")
        needs = [tomllib.loads((side / "pyproject.toml").read_text())["project"]["dependencies"] for side in sides]
        rows.append(f"| required packages | {len(needs[0])} | {len(needs[1])} | {len(needs[1]) / len(needs[0]):.3f} |")
        sizes = [wheel_bytes(side) for side in sides]
        for place, name in enumerate(("wheel", "installed files")):
            before, after = sizes[0][place] / 1e6, sizes[1][place] / 1e6
            rows.append(f"| {name} | {before:.2f} MB | {after:.2f} MB | {after / before:.3f} |")
    return [f"| what | {options.before} | this commit | ratio |", "|---|---|---|---|", *rows]


def record(name: str, text: str) -> None:
    """Replace a section of the results."""
    parts = re.split(r"^(?=## )", RESULTS.read_text(encoding="utf-8"), flags=re.M)
    kept = [part for part in parts if not part.startswith(f"## {name}\n")]
    RESULTS.write_text("".join([*kept[:-1], kept[-1].rstrip() + "\n\n", f"## {name}\n\n{text}\n"]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "load", "footprint"))
    parser.add_argument("--model", help="starter by default; tiny builds a random model of two layers, load's default")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--before", help="a commit")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.model = options.model or {"load": "tiny"}.get(options.what, "starter")
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
    ).stdout.strip()
    rows = {"throughput": throughput, "load": load, "footprint": footprint}[options.what](options)
    command = " ".join(["python -m benchmarks.serving", *(each for each in sys.argv[1:] if each != "--write")])
    text = "\n".join(
        [f"`{command}` on commit {commit}, {psutil.cpu_count()} CPU cores, model {options.model}:", "", *rows]
    )
    print(text)
    if options.write:
        record(options.what, text)


if __name__ == "__main__":
    main()
