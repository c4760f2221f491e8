"""What the benchmarks that run whole processes have in common: building, ports, processes on a core, what the kernel counts."""
import os, re, shutil, socket, subprocess, sys, time, zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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


class Processes:
    """Processes pinned to a core each, which end with the benchmark."""

    def __init__(self, directory):
        self.dir, self.running = Path(directory), []

    def start(self, core, command, **options):
        options = {"stdout": subprocess.DEVNULL, "cwd": self.dir, **options}
        with open(self.dir / "errors.log", "ab") as errors:
            process = subprocess.Popen(["taskset", "-c", str(core), *map(str, command)], stderr=errors, **options)
        self.running.append(process)
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
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def core_seconds(core):
    """Time that a core has been busy so far, or was kept from us by the host."""
    fields = re.search(rf"^cpu{core} (.*)", Path("/proc/stat").read_text(), re.M).group(1).split()
    user, nice, system, _idle, _waiting, *interrupts = map(int, fields[:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


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
