"""What the benchmarks that run whole processes have in common: building, ports, processes on a core, what the kernel counts."""
import contextlib, ctypes, json, os, platform, re, shutil, socket, struct, subprocess, sys, tempfile, time, zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = 64
MIB = 1 << 20
# How much of a core others may take before latencies say nothing.
OTHERS_MAX = 0.1
# And how many requests may meet a stall of a core, see `bench_tool watch`.
STALLED_MAX = 0.2
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def fail(message):
    sys.exit(f"{Path(sys.argv[0]).resolve().relative_to(ROOT)}: {message}")


def apt_install(packages, services=()):
    """Installs packages as root or through sudo; where these start services, those would take ports and time: they are ended."""
    root = [] if os.geteuid() == 0 else ["sudo"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run([*root, "apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*root, "apt-get", "install", "-qy", "--no-install-recommends", *packages], check=True, env=environment, stdout=subprocess.DEVNULL)
        if services and Path("/run/systemd/system").exists():
            subprocess.run([*root, "systemctl", "disable", "--now", *services], check=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"a tool is missing ({error}); as root: apt-get update && apt-get install {' '.join(packages)}")


def missing(tools):
    """The packages of those tools, `{program: packages}`, that are not there."""
    return [package for tool, packages in tools.items() if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin") for package in packages.split()]


def build(*examples):
    """Builds the gateway as it is released, and examples for measuring; gives the paths of all, the gateway first."""
    target = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
    subprocess.run(["cargo", "build", "--locked", "--release"], check=True, cwd=ROOT)
    wanted = [word for name in examples for word in ("--example", name)]
    subprocess.run(["cargo", "build", "--locked", "--profile", "tools", *wanted], check=True, cwd=ROOT)
    return target / "release/keygate", *(target / "tools/examples" / name for name in examples)


def build_without_audit(directory):
    """Builds the gateway as it is released, but without audit, which is for measuring alone; gives the path of a copy."""
    target = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
    subprocess.run(["cargo", "build", "--locked", "--release", "--features", "without-audit"], check=True, cwd=ROOT)
    # The next build puts its own program there.
    return shutil.copy(target / "release/keygate", directory / "keygate-without-audit")


def hide_auxiliary_vector():
    """Has the kernel refuse this process `prctl(PR_GET_AUXV)`. rustix would learn from it where the vDSO is, which valgrind has unmapped
    (3.19 answers truly, and the program crashes); it then reads /proc/self/auxv, where valgrind leaves the vDSO out."""
    no_new_privileges, set_seccomp, filter_mode, get_auxv = 38, 22, 2, 0x41555856
    load, equal, give, allow, refuse = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000 | 22
    prctl = {"x86_64": 157, "aarch64": 167}[platform.machine()]
    steps = [(load, 0, 0, 0), (equal, 0, 3, prctl), (load, 0, 0, 16), (equal, 0, 1, get_auxv), (give, 0, 0, refuse), (give, 0, 0, allow)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(program)))
    call = ctypes.CDLL(None, use_errno=True).prctl
    if call(no_new_privileges, 1, 0, 0, 0) or call(set_seccomp, filter_mode, described, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def key_of(secret):
    """A well-formed key around 43 characters: with its checksum."""
    body, digits = f"ark_live_ent_bench_{secret}", ""
    crc = zlib.crc32(body.encode())
    for _ in range(6):
        digits, crc = ALPHABET[crc % 62] + digits, crc // 62
    return body + digits


STRANGER = key_of("A" * 43)


class Processes:
    """Processes pinned to a core each, which end with the benchmark."""

    def __init__(self, directory):
        self.dir, self.running, self.cores = Path(directory), [], {}

    def start(self, core, command, **options):
        options = {"stdout": subprocess.DEVNULL, "cwd": self.dir, **options}
        with open(self.dir / "errors.log", "ab") as errors:
            process = subprocess.Popen(["taskset", "-c", str(core), *map(str, command)], stderr=errors, **options)
        self.running.append(process)
        self.cores[process] = core
        return process

    def stop(self, process):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.running.remove(process)

    def kill(self, process):
        process.kill()
        process.wait()
        self.running.remove(process)

    def stop_all(self):
        for process in list(self.running):
            self.stop(process)

    def wait(self, port, process):
        """Until something listens there."""
        for _ in range(400):
            if process.poll() is not None:
                fail(f"a process did not start:\n{self.errors()}")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.025)
        fail("a process does not listen")

    def errors(self):
        return (self.dir / "errors.log").read_text()[-2000:]


def cpu_seconds(process):
    """Time on a CPU of all threads so far."""
    return sum(seconds_by_thread(process).values())


def seconds_by_thread(process):
    """Time on a CPU so far of threads of the same name; numbers at the end of a name do not count."""
    seconds = {}
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        try:
            name = (task / "comm").read_text().strip().rstrip("0123456789").rstrip("-")
            seconds[name] = seconds.get(name, 0.0) + int((task / "schedstat").read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            # It has ended meanwhile.
            pass
    return seconds


def core_seconds(core):
    """Time that a core has been busy so far: when it was not idle. What the kernel says of the rest is what it finds at each tick of its
    clock, which takes a thread that wakes with the tick for one that never rests."""
    fields = re.search(rf"^cpu{core} (.*)", Path("/proc/stat").read_text(), re.M).group(1).split()
    idle, waiting = map(int, fields[3:5])
    return time.monotonic() - (idle + waiting) / os.sysconf("SC_CLK_TCK")


def pss(process):
    """Proportional set size in bytes: private memory, and its share of what is shared."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.M).group(1)) * 1024


def version(command):
    result = subprocess.run(command, capture_output=True, text=True)
    return re.search(r"\d+\.\d+\.\d+", result.stdout + result.stderr).group(0)


def commit():
    """The commit that was measured, or `?` outside a clone."""
    result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return result.stdout.strip() or "?"


def machine():
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    return f"{time.strftime('%Y-%m-%d')}, {model}, {os.cpu_count()} cores, Linux {os.uname().release.split('-')[0]}; keygate {commit()}"


class Gateway:
    """A gateway with a directory of its own; `start` it as often as you like."""

    def __init__(self, bench, name, store, sections="", program=None):
        self.bench, self.name, self.store, self.dir, self.process = bench, name, store, bench.dir / name, None
        self.sections, self.program = sections, program or bench.keygate
        self.dir.mkdir()

    def start(self, wrapper=(), core=0, **options):
        self.port, self.admin = free_port(), free_port()
        (self.dir / "gateway.toml").write_text(f"""
[[listen]]
address = "127.0.0.1:{self.port}"
[admin]
address = "127.0.0.1:{self.admin}"
[gateway]
id = "{self.name}"
workers = 1
[store]
url = "{self.store}"
[cache]
keys_max = {max(1_000_000, self.bench.count)}
max_stale = "12h"
[scopes]
orders = ["read", "write"]
[upstreams.erp]
live = ["http://127.0.0.1:{self.bench.upstream}"]
[[routes]]
path = "/v1/entities/{{entity_id}}/orders/**"
upstream = "erp"
read = "orders:read"
write = "orders:write"
{self.sections}
""")
        self.begun = time.monotonic()
        self.process = self.bench.start(core, [*wrapper, self.program, "serve", "-c", self.dir / "gateway.toml"], **options)

    def stop(self):
        self.bench.stop(self.process)

    def kill(self):
        self.bench.kill(self.process)

    def has_snapshot(self):
        return any((self.dir / "data").glob("keys.snapshot*"))

    def connect(self):
        stream = socket.create_connection(("127.0.0.1", self.port), 1)
        stream.settimeout(300)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def ask(self, stream, path, key):
        """Sends one request; gives the status of the answer, read whole."""
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: erp.example\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer) < self.length(answer):
            received = stream.recv(65536)
            if not received:
                raise ConnectionError
            answer += received
        return int(answer[9:12])

    def length(self, answer):
        head, _, _ = answer.partition(b"\r\n\r\n")
        stated = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
        return len(head) + 4 + int(stated.group(1) if stated else 0)

    def ready(self, key):
        """Seconds from the start of the process until it has given a correct 200 and a correct 401."""
        for wanted, presented in ((200, key), (401, STRANGER)):
            while self.status(presented) != wanted:
                if self.process.poll() is not None or time.monotonic() > self.begun + 600:
                    fail(f"the gateway gives no {wanted}:\n{self.bench.errors()}")
                time.sleep(0.002)
            if wanted == 200:
                self.first_200 = time.monotonic() - self.begun
        return time.monotonic() - self.begun

    def status(self, key):
        try:
            with self.connect() as stream:
                return self.ask(stream, self.bench.path, key)
        except OSError:
            return None

    def metric(self, name):
        with socket.create_connection(("127.0.0.1", self.admin), 10) as stream:
            stream.sendall(b"GET /metrics HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")
            page = stream.makefile("rb").read().decode()
        found = re.search(rf"^{name} ([0-9.e+-]+)", page, re.M)
        return float(found.group(1)) if found else 0.0


class Bench(Processes):
    """A store with keys, an upstream, and what was found to be met or not. Gateways are on core 0, everything else on core 1."""

    def __init__(self, directory, count, *examples):
        super().__init__(directory)
        if subprocess.run(["chrt", "--fifo", "1", "true"], stderr=subprocess.DEVNULL).returncode:
            fail("load and upstream are real-time tasks here: run this as root")
        self.keygate, self.tool, self.seed_keys, *self.examples = build("bench_tool", "seed_keys", *examples)
        self.count, self.verdicts, self.upstream, self.disturbed = count, [], free_port(), 0.0
        # Whatever else is on core 1 gives way to the load and the upstream: their wait for the core would count as the gateway's.
        self.start(1, ["chrt", "--fifo", "2", self.tool, "upstream", f"127.0.0.1:{self.upstream}"])
        self.start(1, ["chrt", "--idle", "0", self.tool, "spin"])
        self.stalls, self.met_stall = self.dir / "stalls", 0.0
        self.stalls.touch()
        for core in (0, 1):
            self.start(core, ["chrt", "--fifo", "3", self.tool, "watch", self.stalls])

    def seed(self, store):
        """Fills a store, whose keys are those that are used from now on."""
        keys = self.dir / "keys.txt"
        entity = subprocess.run([self.seed_keys, store, str(self.count), keys], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        self.keys, self.path = keys, f"/v1/entities/{entity}/orders/7"
        every = keys.read_text().split()
        self.some, self.last = every[:1000], every[-1]

    def begin_load(self, gateway, seconds, rate, keys):
        # After the upstream, which would starve while it makes up for a stall. A closed loop takes the whole core, which the kernel
        # gives no real-time task.
        first = ["chrt", "--fifo", "1"] if rate else []
        command = ["taskset", "-c", "1", *first, self.tool, "load", f"127.0.0.1:{gateway.port}", self.path, CONNECTIONS, f"{seconds:.3f}", rate, keys, self.stalls]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        self.cores[process] = 1
        return process

    def end_load(self, process):
        out, errors = process.communicate(timeout=600)
        self.running.remove(process)
        if process.returncode:
            fail(f"the load failed: {errors}")
        answer = json.loads(out)
        self.met_stall = max(self.met_stall, answer["met_stall"] / answer["answered"])
        return answer

    def load(self, *arguments):
        return self.end_load(self.begin_load(*arguments))

    def of_others(self):
        """Time so far that core 0 and core 1 were busy with what is not of this benchmark. No process may end meanwhile but a load."""
        ended = os.times()
        ours = [0.0, ended.children_user + ended.children_system]
        for process in self.running:
            ours[self.cores[process]] += cpu_seconds(process)
        return [core_seconds(core) - own for core, own in enumerate(ours)]

    @contextlib.contextmanager
    def watch_others(self):
        """Notes what share of a core others take meanwhile; gives the shares of core 0 and core 1 in the end."""
        shares, began, before = [], time.monotonic(), self.of_others()
        yield shares
        seconds = time.monotonic() - began
        shares += [max(0.0, now - then) / seconds for then, now in zip(before, self.of_others())]
        self.disturbed = max(self.disturbed, *shares)

    def say_if_void(self):
        if self.disturbed > OTHERS_MAX:
            print(f"THE LATENCIES ARE VOID: others took up to {self.disturbed:.0%} of a core; allowed are {OTHERS_MAX:.0%}.")
        if self.met_stall > STALLED_MAX:
            print(f"THE LATENCIES ARE VOID: up to {self.met_stall:.0%} of the requests met a stall of a core; allowed are {STALLED_MAX:.0%}.")
        else:
            print(f"Of the requests {self.met_stall:.1%} at the most met a stall of a core and do not count.")

    def judge(self, what, is_met, found):
        self.verdicts.append(bool(is_met))
        print(f"{'met' if is_met else 'not met'}: {what}: {found}")


def table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    print("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n", flush=True)


def say(text):
    print(text, file=sys.stderr, flush=True)


def write_keys(path, keys):
    path.write_text("\n".join(keys) + "\n")
    return path


@contextlib.contextmanager
def core_kept_free(core):
    """Keeps what may run elsewhere off a core, kernel threads among it, as far as this user may: what is started now chooses its own."""
    moved = {}
    for task in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        with contextlib.suppress(OSError):
            cores = os.sched_getaffinity(int(task.name))
            # What writes a file system's journal works for whoever syncs.
            is_for_syncs = (task / "comm").read_text().startswith("jbd2")
            if core in cores and len(cores) > 1 and not is_for_syncs:
                os.sched_setaffinity(int(task.name), cores - {core})
                moved[int(task.name)] = cores
    try:
        yield
    finally:
        for task, cores in moved.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(task, cores)


@contextlib.contextmanager
def running(make):
    """What `make` gives for a directory of its own; all its processes end in the end."""
    with tempfile.TemporaryDirectory(prefix="keygate-bench-") as directory:
        bench = None
        try:
            bench = make(directory)
            with core_kept_free(0):
                yield bench
        finally:
            if bench:
                bench.stop_all()
