"""Requests that follow, or break, the server's own /openapi.json, made by schemathesis: what does the server answer?

    python -m benchmarks.api_schema --seconds 300

Starts ``llmkit serve`` with a model on loopback, and runs ``schemathesis run`` (which is not a dependency; name its
command with --schemathesis, such as "uvx schemathesis@4.32.5") again and again with new seeds. Counted are answers of
the server's own failure (5xx), statuses and content types that are not documented, and bodies that do not conform to
the documented schemas.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--examples", type=int, default=20, help="requests for each path in one run")
    parser.add_argument("--schemathesis", default="uvx schemathesis@4.32.5", help="its command")
    options = parser.parse_args()
    serve = [sys.executable, "-m", "llmkit", "serve", options.model, "--port", "0", "--device", "cpu", "--offline"]
    serve += ["--timeout", "20"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
            return campaign(address, options)
        finally:
            server.terminate()


def campaign(address: str, options: argparse.Namespace) -> int:
    """Run until the time is over; returns 1 if a run has found a failure."""
    begun, seed, requests, failed = time.monotonic(), 0, 0, 0
    while time.monotonic() - begun < options.seconds:
        seed += 1
        command = [*shlex.split(options.schemathesis), "run", f"{address}/openapi.json", "--checks", CHECKS]
        command += ["--max-examples", str(options.examples), "--seed", str(seed), "--continue-on-failure"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        made = re.search(r"(\d+) generated", run.stdout)
        requests += int(made[1]) if made else 0
        if run.returncode:
            failed += 1
            print(run.stdout + run.stderr, flush=True)
    print(f"{seed} runs, {requests} requests, {failed} runs with failures, {time.monotonic() - begun:.0f} s")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
