"""The peers' own Python environments and converted models, made on first use in the cache folder.

OpenVINO's converter needs an older transformers than this project, so it gets an environment that shares nothing with
this one. CTranslate2's works with the one that runs, and is laid over it.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import PeerError, environment

HERE = Path(__file__).resolve().parent
INSTALL_S, CONVERT_S = 1800, 900


@dataclass(frozen=True, slots=True)
class Environment:
    """A peer's requirements file is named after it. `drops` are packages it installs and must not have."""

    name: str
    is_isolated: bool
    drops: tuple[str, ...] = ()

    @property
    def requirements(self) -> Path:
        return HERE / f"requirements-{self.name}.txt"


# optimum-intel asks for torchvision, whose wheel fits one build of torch only; no model here sees a picture.
ENVIRONMENTS = {
    "openvino": Environment("openvino", is_isolated=True, drops=("torchvision",)),
    "ctranslate2": Environment("ctranslate2", is_isolated=False),
}


@dataclass(slots=True)
class Installer:
    """Makes environments and conversions in the cache folder; what failed once is not tried again."""

    cache: Path
    tell: Callable[[str], None]
    _failures: dict[Path, str] = field(default_factory=dict)

    def python_of(self, name: str) -> Path:
        """Give the interpreter of a peer's environment, of this one where it has no name; make it where it is missing.

        Raises:
            PeerError: it cannot be installed.
        """
        if not name:
            return Path(sys.executable)
        wanted = ENVIRONMENTS[name]
        folder = self.cache / "venvs" / name
        stamp = folder / "installed.txt"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted.requirements.read_text(encoding="utf-8"):
            self._once(folder, f"Installing {name} into {folder}", lambda: self._install(wanted, folder))
            stamp.write_text(wanted.requirements.read_text(encoding="utf-8"), encoding="utf-8")
        return folder / "bin" / "python"

    def converted(self, module: str, python: Path, source: Path) -> Path:
        """Give the folder of the model in the peer's own format; the peer's module converts it where it is missing.

        Raises:
            PeerError: it cannot be converted.
        """
        target = source.with_name(f"{source.name}-{module}")
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial")
            command = [str(python), "-m", f"benchmarks.peers.{module}", str(source), str(partial)]
            log = self.cache / f"convert-{target.name}.log"
            self._once(target, f"Converting {source.name} for {module}", lambda: _run(command, CONVERT_S, log))
            partial.rename(target)
        return target

    def _once(self, made: Path, what: str, make: Callable[[], None]) -> None:
        if made in self._failures:
            raise PeerError(self._failures[made])
        self.tell(f"{what}, once; this can take minutes.")
        try:
            make()
        except PeerError as error:
            self._failures[made] = str(error)
            raise

    def _install(self, wanted: Environment, folder: Path) -> None:
        python = folder / "bin" / "python"
        venv.create(folder, clear=True, with_pip=True, symlinks=True)
        same_torch = [f"torch=={importlib.metadata.version('torch').partition('+')[0]}"] if wanted.is_isolated else []
        if not wanted.is_isolated:
            _lay_over(python)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        log = self.cache / f"install-{wanted.name}.log"
        _run([*pip, "install", "-r", str(wanted.requirements), *same_torch], INSTALL_S, log)
        if wanted.drops:
            _run([*pip, "uninstall", "--yes", *wanted.drops], INSTALL_S, log)


def _lay_over(python: Path) -> None:
    """Let the new environment import, after its own packages, those of the one that runs."""
    site = subprocess.check_output(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    (Path(site) / "laid_over.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def _run(command: Sequence[str], timeout_s: float, log: Path) -> None:
    with log.open("a", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                command, stdout=output, stderr=output, timeout=timeout_s, env=environment(), check=False
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"`{' '.join(command[1:4])}` took longer than {timeout_s:.0f} s; see {log}") from error
    if done.returncode:
        raise PeerError(f"`{' '.join(command[1:4])}` failed; see the end of {log}")
