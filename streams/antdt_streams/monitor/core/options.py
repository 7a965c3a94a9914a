"""Every number that the detector and the rate estimator go by, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass

from antdt_schemas.errors import UsageError


@dataclass(frozen=True, slots=True)
class DetectorOptions:
    """Units last; shares and factors are relative. In brackets: the range that was safe when varied alone."""

    window_steps: int = 5  # steps in a short window (4-6)
    long_windows: int = 6  # short windows in a long one (5-6)
    # Flagged windows of the last long one that make a node persistent (5: 4 fails on heavy tails, 6 is slow)
    persistent_windows: int = 5
    warm_up_windows: int = 1  # a node's first windows, not judged: compilation, cold caches (0-3)
    onset: float = 0.10  # slower than the own baseline, relative to everybody's change (0.04-0.12)
    solo: float = 0.03  # what the group would gain if its slowest node were as fast as the next one (0.01-0.05)
    flag_errors: float = 3.0  # both thresholds are at least this many standard errors of a window's median (2-3)
    burst: float = 0.30  # transient: a sample is this much above expectation (0.20-0.70) ...
    burst_samples: int = 2  # ... at least this often ...
    burst_share: float = 0.25  # ... and in this share of the window
    class_gap: float = 1.35  # factor between two hardware classes, or between two groups (1.3-1.5)
    rotating_loss: float = 0.15  # unexplained share of the step time that is called rotating (0.10-0.35)
    # A window closes when more than this share of the live nodes moved on past the next one (0.2-0.9)
    quorum: float = 0.5
    absent_windows: int = 3  # silent for this many windows: absent, and nobody waits for it
    forget_windows: int = 60  # silent for this many windows: forgotten
    hold_windows: int = 20  # a silent half is not waited for any longer when the other half is this far ahead
    horizon_windows: int = 200  # steps further ahead than this are kept out until half of the nodes are there
    time_min_s: float = 1e-9
    time_max_s: float = 1e5  # shorter and longer own times are absurd
    batch_size_max: int = 1 << 32  # larger batches are absurd
    nodes_max: int = 8192  # more nodes than this are not taken in
    floor: float = 0.05  # share of a step's own time that is left to its samples at least, whatever the fixed cost

    fixed_s: float | None = None  # fixed seconds a step, where they are known; None learns them from changes of plan
    fixed_change: float = 0.25  # a change of batch size this large tells something about the fixed cost
    fixed_slopes: int = 3  # slopes that must be known before a fixed cost is believed
    fixed_share_max: float = 0.8  # slopes that make more than this share of a step fixed are not believed

    rate_samples: int = 30  # most samples that a rate rests on
    rate_samples_min: int = 3  # fewest; after a jump a rate starts from this many
    rate_warm_up_steps: int = 2  # an incarnation's first steps, not counted
    jump: float = 0.30  # a rate has jumped when its newest samples differ by this much ...
    jump_errors: float = 5.0  # ... and by this many standard errors
    shrink_errors: float = 6.0  # a rate this many standard errors away from its group is not drawn towards it
    urgent_steps: int = 5  # at most one urgent measurement in this many steps

    def __post_init__(self) -> None:
        if not 1 <= self.persistent_windows <= self.long_windows:
            raise UsageError(
                f"persistent_windows is {self.persistent_windows}: take 1 to long_windows ({self.long_windows})."
            )
        if min(self.window_steps, self.rate_samples_min, self.absent_windows, self.urgent_steps) < 1:
            raise UsageError("window_steps, rate_samples_min, absent_windows and urgent_steps must be at least 1.")
        if self.rate_samples < 2 * self.rate_samples_min:
            raise UsageError(f"rate_samples is {self.rate_samples}: take at least twice rate_samples_min.")
        if self.hold_windows >= self.horizon_windows or self.absent_windows > self.forget_windows:
            raise UsageError("hold_windows must stay below horizon_windows, absent_windows below forget_windows.")
