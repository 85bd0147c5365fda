"""``python -m bench SCENARIO [ARGUMENT ...]``: each scenario is a module with ``main(argv) -> exit code``."""

from __future__ import annotations

import sys
from importlib import import_module

SCENARIOS = {
    "core": "bench.core",
    "crash": "bench.crash",
    "decode": "bench.decode",
    "dedupe": "bench.dedupe",
    "kafka": "bench.kafka",
    "ledger": "bench.ledger",
    "path": "bench.path",
    "demo": "bench.demo",
    "simulator": "bench.simulator",
    "smooth": "bench.smooth",
    "urgent": "bench.urgent",
}


def main(argv: list[str]) -> int:
    """Run one scenario. Exit code 2: there is none of that name."""
    if not argv or argv[0] not in SCENARIOS:
        print(f"usage: python -m bench SCENARIO [ARGUMENT ...]; scenarios: {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    code: int = import_module(SCENARIOS[argv[0]]).main(argv[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
