"""An emulated ARM board: a Debian root of the other architecture, our agent and the board's own wheels in it, qemu to run it.

Nothing of the root is executed while it is made (mmdebstrap extracts, pip unpacks wheels for the target), which takes about half a
minute. Emulation shows that things work, never how fast. Needs root, mmdebstrap and qemu-user-static.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ENABLE = "EDGEWRIGHT_DEVICE_TESTS"
ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"  # Python 3.11
GLIBC = 36  # its minor version there: newer wheels do not load
PACKAGES = "python3,libpython3.11-stdlib,ca-certificates,libstdc++6,libgomp1,dash,coreutils,tzdata"


@dataclass(frozen=True, slots=True)
class Board:
    """One kind of board.

    Args:
        debian: architecture in Debian; ``qemu``: qemu's name for it; ``cpu``: what qemu pretends to be.
        features: of /proc/cpuinfo. onnxruntime reads that file, and crashes on one of another architecture.
        packages: from Debian, besides what every board has.
        wheels: from the package index, for ``platforms``; with ``resolve`` also what they need.
    """

    debian: str
    qemu: str
    cpu: str
    part: str
    features: str
    platforms: tuple[str, ...]
    packages: str
    wheels: tuple[str, ...]
    resolve: bool


BOARDS = {
    "arm64": Board(
        "arm64", "qemu-aarch64", "cortex-a72", "0xd08", "fp asimd evtstrm crc32 cpuid",
        ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1))),
        "", ("[agent-ort]", "[agent-litert]"), True,
    ),
    # The index has few wheels for 32-bit ARM: numpy (which tflite-runtime wants old) and cffi are Debian's.
    "armhf": Board(
        "armhf", "qemu-arm", "cortex-a7", "0xd03",
        "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae crc32",
        ("linux_armv7l", "manylinux2014_armv7l", *(f"manylinux_2_{minor}_armv7l" for minor in range(17, GLIBC + 1))),
        "python3-numpy,python3-cffi",
        ("", "tflite-runtime==2.14.0", "click", "waitress", "tuf==7.0.1", "securesystemslib==1.6.0", "urllib3", "cryptography"),
        False,
    ),
}  # fmt: skip


def missing() -> str | None:
    """Why no board can be emulated here, or None."""
    if not os.environ.get(ENABLE):
        return f"emulated boards take minutes: set {ENABLE}=1"
    if os.geteuid() != 0:
        return "emulated boards need root"
    tools = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "update-binfmts": "binfmt-support"}
    for tool, package in (*tools.items(), ("qemu-aarch64-static", "qemu-user-static")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install {package})"
    return None


def make_root(board: Board, folder: Path) -> Path:
    """Debian, our wheel and its dependencies below ``folder``. Raises RuntimeError with what the failing command said."""
    _register(board)
    root = folder / "root"
    packages = ",".join(filter(None, (PACKAGES, board.packages)))
    _call("mmdebstrap", "--quiet", "--variant=extract", f"--architectures={board.debian}", f"--include={packages}",
          SUITE, str(root), _sources())  # fmt: skip
    for name in ("proc", "sys", "dev", "tmp", "data", "repository", "opt/site", "etc/board"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to("dash")
    if board.debian == "armhf":  # alternatives, which maintainer scripts would set
        for library in ("blas", "lapack"):
            libraries = root / "usr/lib/arm-linux-gnueabihf"
            (libraries / f"lib{library}.so.3").symlink_to(f"{library}/lib{library}.so.3")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    _hardware(board, root)
    _install(board, root, folder)
    return root


def _sources() -> str:
    """The line of this machine's own mirror."""
    shown = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=True
    )
    mirrors = [line for line in shown.stdout.splitlines() if "security" not in line]
    return f"deb {mirrors[0]} {SUITE} main"


def _register(board: Board) -> None:
    """Let the kernel start foreign programs through qemu, also below another root (flag F of binfmt_misc)."""
    control = Path("/proc/sys/fs/binfmt_misc")
    if not (control / "status").exists():
        _call("mount", "-t", "binfmt_misc", "binfmt_misc", str(control))
    if not (control / board.qemu).exists():
        subprocess.run(["update-binfmts", "--enable", board.qemu], capture_output=True, check=False)
    if not (control / board.qemu).exists():
        line = Path(f"/usr/lib/binfmt.d/{board.qemu}.conf").read_text("latin-1").replace("\n", "")
        (control / "register").write_text(line, "latin-1")


def _hardware(board: Board, root: Path) -> None:
    """/proc/cpuinfo and /sys as the board's kernel would show them: those of the host are of another architecture."""
    entry = (
        "processor\t: {0}\nBogoMIPS\t: 108.00\nFeatures\t: {1}\nCPU implementer\t: 0x41\nCPU architecture: {2}\n"
        "CPU variant\t: 0x0\nCPU part\t: {3}\nCPU revision\t: 3\n\n"
    )
    generation = 8 if board.debian == "arm64" else 7
    cores = [entry.format(n, board.features, generation, board.part) for n in range(2)]
    (root / "etc/board/cpuinfo").write_text("".join(cores))
    system = root / "sys/devices/system/cpu"
    for number in range(2):
        (system / f"cpu{number}/topology").mkdir(parents=True, exist_ok=True)
        (system / f"cpu{number}/topology/core_id").write_text(f"{number}\n")
        (system / f"cpu{number}/topology/physical_package_id").write_text("0\n")
    for name in ("possible", "present", "online"):
        (system / name).write_text("0-1\n")


def _install(board: Board, root: Path, folder: Path) -> None:
    python = sys.executable
    source = folder / "source"  # a build leaves files beside pyproject.toml
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT, source, ignore=ignored)
    _call(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source))
    (wheel,) = folder.glob("edgewright-*.whl")
    wanted = [f"{wheel}{name}" if not name or name.startswith("[") else name for name in board.wheels]
    platforms = [word for name in board.platforms for word in ("--platform", name)]
    _call(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp",
          "--abi", "cp311", "--abi", "abi3", "--abi", "none", *platforms, *([] if board.resolve else ["--no-deps"]),
          "--target", str(root / "opt/site"), *wanted)  # fmt: skip


def command(root: Path, board: Board, *words: str, binds: Sequence[tuple[Path, str]] = ()) -> list[str]:
    """The command line that runs ``words`` on the board. Its mounts are in a namespace of their own and vanish with it."""
    mounts = [f'mount -t proc proc "{root}/proc"', f'mount --bind "{root}/etc/board/cpuinfo" "{root}/proc/cpuinfo"']
    mounts.append(f'mount -t tmpfs dev "{root}/dev" && mkdir "{root}/dev/shm"')
    for device in ("null", "zero", "random", "urandom"):
        mounts.append(f': > "{root}/dev/{device}" && mount --bind /dev/{device} "{root}/dev/{device}"')
    mounts += [f'mount --bind "{source}" "{root}{target}"' for source, target in binds]
    environment = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8", f"QEMU_CPU={board.cpu}",
                   "PYTHONPATH=/opt/site", "PYTHONDONTWRITEBYTECODE=1", "ORT_DISABLE_TELEMETRY=1"]  # fmt: skip
    script = " && ".join([*mounts, f'exec chroot "{root}" "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "board", *environment, *words]


def agent(root: Path, board: Board, *words: str, binds: Sequence[tuple[Path, str]] = ()) -> list[str]:
    """``edgewright-agent`` on the board."""
    return command(root, board, "python3", "-m", "device_agent.main", *words, binds=binds)


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]} {words[1]}: {done.stderr[-2000:]}")
