"""The engine of a run: this process while there is little to do, and what was asked for once there is more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compiler.units import local, ray
from compiler.units.task import Engine, Setup


class Engines:
    """What can do the work of a run. A context manager: what was started ends with it."""

    def __init__(
        self, name: str, workers: int, ray_address: str, setup: Setup, cache: Path, say: Callable[[str], None]
    ) -> None:
        """`name` is local or ray; `workers` are processes, or on a cluster tasks at once (0 = as many as fit)."""
        self._name, self._workers, self._address = name, workers, ray_address
        self._setup, self._cache, self._say = setup, cache, say
        self.in_process = local.InProcess()
        self.current: Engine = self.in_process
        """What runs now."""

    def __enter__(self) -> Engines:
        return self

    def started(self, *, encodes: bool) -> Engine:
        """The engine that was asked for; it is started where it does not run yet. `encodes`: units will be compiled."""
        if self.current is self.in_process:
            if self._name == "ray":
                self.current = ray.Cluster(self._address, self._workers, self._setup, self._cache, self._say)
            elif self._workers > 1:
                self.current = workers = local.Workers(self._workers, self._setup, encodes=encodes)
                workers.start()
        return self.current

    def linking(self, folder: Path) -> Engine:
        """What may write into a folder of this machine."""
        if isinstance(self.current, ray.Cluster) and not self.current.sees(folder):
            return self.in_process
        return self.current

    def __exit__(self, *_: object) -> None:
        self.current.close()
