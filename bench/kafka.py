"""A real Apache Kafka of one node, without Docker: jars from Maven Central, the machine's Java, loopback only.

``python -m bench kafka [PORT]`` starts one, prints its address and stops it at Ctrl-C. Tests use ``Broker``. The jars
(44 MB) are fetched once into the checkout's ``.cache/kafka``; needs Java 17 or later and Maven.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

HERE = Path(__file__).parent
POM = HERE / "kafka-pom.xml"
CACHE = HERE.parent / ".cache" / "kafka"
FETCH_S = 600
START_S = 180  # a minute is not enough for Java where five compilers run
STOP_S = 20
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT{protocols}
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=1000
"""


class Unavailable(Exception):
    """No Kafka can be had on this machine; the text says why."""


def fetch_jars() -> Path:
    """The folder with the jars, fetched when it is not there. Raises Unavailable."""
    libs = CACHE / "libs"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test runs may want them at once
        stamp = CACHE / "pom.xml"
        if libs.is_dir() and stamp.exists() and stamp.read_bytes() == POM.read_bytes():
            return libs
        shutil.rmtree(libs, ignore_errors=True)
        maven = shutil.which("mvn") or _missing("Maven (mvn)")
        command = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
        options = [f"-DoutputDirectory={libs}", "-DincludeScope=runtime"]
        try:
            subprocess.run([*command, *options], check=True, timeout=FETCH_S, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"Maven cannot fetch the jars: {error.stdout[-2_000:]}{error.stderr}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"Maven did not fetch the jars within {FETCH_S} s") from error
        shutil.copyfile(POM, stamp)
    return libs


def _missing(what: str) -> str:
    raise Unavailable(f"{what} is not on the PATH")


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """One node with a data folder of its own. A context manager: gone at the end, whatever happens.

    It also dies with the *thread* that started it (Linux counts the parent death signal so), hence: start it from the
    main thread. ``kill`` and ``restart`` are for crash tests; address and data stay the same. ``listeners`` are further
    ones, protocol -> port; ``properties`` are added to the node's, ``format`` to what formats its data folder.
    """

    def __init__(
        self,
        port: int | None = None,
        *,
        listeners: Mapping[str, int] | None = None,
        properties: Mapping[str, str] | None = None,
        format: Sequence[str] = (),
    ) -> None:
        self._port = port or free_port()
        self._listeners = dict(listeners or {})
        self._more = dict(properties or {})
        self._format = tuple(format)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    @property
    def bootstrap(self) -> str:
        """host:port"""
        return f"127.0.0.1:{self._port}"

    @property
    def running(self) -> bool:
        """False before the start, after kill and stop."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the running node."""
        assert self._process is not None, "the broker is not running"
        return self._process.pid

    def __enter__(self) -> Broker:
        if self._folder is None:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Format a new data folder and start; returns when the node answers. Raises Unavailable."""
        self._java = shutil.which("java") or _missing("Java")
        self._libs = fetch_jars()
        self._folder = Path(tempfile.mkdtemp(prefix="surgetank-kafka-"))
        try:
            self._properties.write_text(self._text(self._folder / "data"))
            cluster = self._tool("random-uuid").strip()
            self._tool("format", "--standalone", "-t", cluster, "-c", str(self._properties), *self._format)
            self.restart()
        except BaseException:
            self.stop()
            raise

    def restart(self) -> None:
        """Start it (again) on its data; returns when it answers."""
        assert self._folder is not None, "the broker was not started"
        assert self._process is None, "the broker is running"
        heap = ["-Xms256m", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        command = [self._java, *heap, "-cp", f"{self._libs}/*", "kafka.Kafka", str(self._properties)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        self._wait()

    def kill(self) -> None:
        """SIGKILL: what a crash looks like."""
        assert self._process is not None, "the broker is not running"
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """Stop it and remove its data. Does nothing when it is not running."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
                self._process = None
            except subprocess.TimeoutExpired:
                self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def _properties(self) -> Path:
        assert self._folder is not None
        return self._folder / "server.properties"

    def _text(self, data: Path) -> str:
        more = "".join(f",{name}://127.0.0.1:{port}" for name, port in self._listeners.items())
        protocols = "".join(f",{name}:{name}" for name in self._listeners)
        text = PROPERTIES.format(
            port=self._port, controller=free_port(), data=data, listeners=more, protocols=protocols
        )
        return text + "".join(f"{name}={value}\n" for name, value in self._more.items())

    def _tool(self, *arguments: str) -> str:
        command = [self._java, "-XX:TieredStopAtLevel=1", "-cp", f"{self._libs}/*", "kafka.tools.StorageTool"]
        ran = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=START_S, check=False)
        if ran.returncode:
            raise Unavailable(f"StorageTool {arguments[0]} failed: {ran.stdout[-1_000:]}{ran.stderr[-1_000:]}")
        return ran.stdout

    def _wait(self) -> None:
        assert self._process is not None
        assert self._folder is not None
        deadline = time.monotonic() + START_S
        while not _answers(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self._folder / "log").read_text(errors="replace")[-3_000:]
                raise Unavailable(f"Kafka did not come up on {self.bootstrap}: {said}")
            time.sleep(0.1)


def _die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _answers(port: int) -> bool:
    """True when an ApiVersions request is answered: the listener is open long before the node serves."""
    request = struct.pack(">hhih", 18, 0, 1, -1)  # key, version, correlation, no client id
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return len(connection.recv(8)) == 8
    except OSError:
        return False


def main(argv: list[str]) -> int:
    """Run one until Ctrl-C or SIGTERM."""
    if len(argv) > 1 or not all(argument.isdigit() for argument in argv):
        print("usage: python -m bench kafka [PORT]", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Broker(int(argv[0]) if argv else None) as broker:
            print(broker.bootstrap, flush=True)
            os.waitpid(broker.pid, 0)
    except KeyboardInterrupt:
        return 0
    except Unavailable as error:
        print(f"no Kafka: {error}", file=sys.stderr)
        return 1
    print("Kafka ended by itself", file=sys.stderr)
    return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
