"""What the demo runs, and what it could take at best. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from antdt_schemas.errors import UsageError

MITIGATION, SERVERS = "mitigation", "ps"
SCENES = (MITIGATION, SERVERS)
DIGITS_EPOCHS = 8
MNIST_SAMPLES = 12_000  # one epoch of them takes as long as the digits


@dataclass(frozen=True)
class DemoOptions:
    """Times of bursts in seconds; `slow` and `burst` multiply the time a sample takes.

    epochs and samples: 0 chooses what takes about a minute. scene: what is shown.
    """

    workers: int = 4
    data: str = "digits"
    samples: int = 0
    epochs: int = 0
    batch_size: int = 128
    delay_ms: float = 4.0
    slow: float = 3.0
    burst: float = 3.0
    burst_s: float = 4.0
    burst_every_s: float = 12.0
    seed: int = 0
    scene: str = MITIGATION

    def __post_init__(self) -> None:
        if self.data != "digits" and not self.data.startswith("mnist:"):
            raise UsageError(f"--data {self.data}: take digits, or mnist:DIR with the folder of the idx files.")
        if self.workers < 3:
            raise UsageError(f"--workers {self.workers}: the demo slows two workers down, take at least 3.")
        if self.batch_size < self.workers:
            raise UsageError(f"--batch-size {self.batch_size}: take at least one sample for each worker.")
        if self.epochs < 0 or self.samples < 0:
            raise UsageError("--epochs and --samples must not be negative.")
        if self.delay_ms <= 0 or self.slow < 1 or self.burst < 1:
            raise UsageError("--delay-ms must be above 0, and --slow and --burst at least 1.")
        if not 0 < self.burst_s < self.burst_every_s:
            raise UsageError("--burst-s must be above 0 and below --burst-every-s.")

    @property
    def in_bursts(self) -> str:
        """Name of the worker that is slow in bursts: the last one."""
        return f"w{self.workers - 1}"

    @property
    def injected(self) -> dict[str, str]:
        """What was done to which worker, in words."""
        return {"w1": f"{self.slow:g}x slow", self.in_bursts: f"{self.burst:g}x bursts"}

    @property
    def launcher_arguments(self) -> list[str]:
        servers = ["--servers", "2"] if self.scene == SERVERS else []
        return ["-n", str(self.workers), *servers]

    @property
    def script_arguments(self) -> list[str]:
        mnist = self.data != "digits"
        samples = self.samples or (MNIST_SAMPLES if mnist and not self.epochs else 0)
        epochs = self.epochs or (1 if mnist else DIGITS_EPOCHS)
        bursts = f"{self.in_bursts}:{self.burst:g}:{self.burst_s:g}:{self.burst_every_s:g}"
        work = ["--data", self.data, "--samples", samples, "--epochs", epochs, "--batch-size", self.batch_size]
        pace = ["--seed", self.seed, "--delay-ms", self.delay_ms, "--slow", f"w1:{self.slow:g},{bursts}"]
        servers = ["--mode", "asp", "--checkpoint-every", 20] if self.scene == SERVERS else []
        return [str(part) for part in (*work, *pace, *servers)]

    def ideal_s(self, samples: int) -> float:
        """Time for `samples` if each were done by whoever is free first, and nothing else took any time.

        Each period ends with its burst, and the first one begins with the first step.
        """
        work_s = samples * self.delay_ms / 1000
        calm_s = self.burst_every_s - self.burst_s
        calm_rate = (self.workers - 2) + 1 / self.slow + 1
        burst_rate = (self.workers - 2) + 1 / self.slow + 1 / self.burst
        periods, rest_s = divmod(work_s, calm_s * calm_rate + self.burst_s * burst_rate)
        in_calm_s = min(calm_s, rest_s / calm_rate)
        in_burst_s = (rest_s - in_calm_s * calm_rate) / burst_rate
        return periods * self.burst_every_s + in_calm_s + in_burst_s
