"""A worker process towards its supervisor (shell): what it is told at its start, and that it does not outlive it.

In: one line on standard input, which then stays open for as long as the supervisor lives.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import msgspec

from engine.config import Config, LogConfig
from engine.errors import ConfigError
from engine.probes import UNIX
from engine.send import Tier
from engine.shares import worker_config, workers

STDIN = 0
ALONE_S = 40.0  # to drain without a supervisor; more than a drain takes


class Order(msgspec.Struct, frozen=True):
    """What a worker is told."""

    worker: str
    socket: str  # where it tells of itself
    member: str  # its name in the groups
    config: str  # the file's text as the supervisor read it: after an edit the shares of old and new do not add up


def read_order() -> Order:
    """The supervisor's. Raises ConfigError for a process that has none."""
    line = b""
    while not line.endswith(b"\n") and (read := os.read(STDIN, 1 << 16)):
        line += read
    try:
        return msgspec.json.decode(line, type=Order)
    except msgspec.DecodeError as error:
        raise ConfigError("--worker is for the supervisor to give; start `surgetank serve` without it") from error


def ordered(config: Config, order: Order) -> tuple[Config, tuple[Tier, ...]]:
    """What this worker runs with."""
    worker = next(one for one in workers(config) if one.name == order.worker)
    mine = worker_config(config, worker)
    log: LogConfig = msgspec.structs.replace(mine.log, member=order.member)
    http = msgspec.structs.replace(mine.http, metrics=UNIX + order.socket)
    return msgspec.structs.replace(mine, log=log, http=http), worker.tiers


def follow_supervisor() -> None:
    """Drain when the supervisor has gone; after ALONE_S end, drained or not. A thread: the loop may hang."""
    threading.Thread(target=_follow, name="supervisor", daemon=True).start()


def _follow() -> None:
    while os.read(STDIN, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ALONE_S)
    os._exit(1)
