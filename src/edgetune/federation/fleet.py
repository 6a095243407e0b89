"""What a simulated fleet does in a round: who fails, who is slow, who is there yet; a function of the seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgetune.core.keys import stream

ABSENT = "absent"
"""Of a device that has not joined yet: it received nothing."""


@dataclass(frozen=True, slots=True)
class Fates:
    """How a round goes for the devices that it asks.

    Args:
        answering: those whose replies count, ascending.
        unanswered: why the others' do not: `absent`, `failed`, `late` or `not needed`, by device.
        seconds: simulated time from the messages to the last reply that counts, or to the deadline if fewer came.
        times: simulated time from the messages to the reply, of every device in `answering`.
    """

    answering: list[int]
    unanswered: dict[int, str]
    seconds: float
    times: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices of different speed, some of which fail or join late.

        t_ir = steps seconds s_i j_ir,   ln s_i ~ N(0, spread^2) once a device,   ln j_ir ~ N(0, jitter^2) once a round

    A device of round r answers after t_ir; replies after the deadline, and those beyond the number that is wanted, in
    the order of their times, do not count. A share of the devices joins at a round drawn from 2 to `rounds`.

    Args:
        seed: the run's seed.
        failing: probability that a device that is asked does not answer, in [0, 1).
        seconds: simulated seconds of a local step of a device of middling speed, > 0.
        spread: how different devices are, at least 0; of 0.5 the slowest of a hundred takes thrice the median.
        jitter: how different a device's rounds are, at least 0.
        joining: share of the devices that is not there from the start, in [0, 1].
        rounds: of the run, at least 1.
        deadline: simulated seconds after which a round takes no reply; infinite if there is none.
    Cost: a few draws a device and round; devices that do not answer compute nothing.
    """

    seed: int
    failing: float = 0.0
    seconds: float = 1.0
    spread: float = 0.0
    jitter: float = 0.0
    joining: float = 0.0
    rounds: int = 1
    deadline: float = math.inf

    def fates(self, round: int, asked: Sequence[int], wanted: int, steps: int) -> Fates:
        """Return what becomes of a round.

        Args:
            round: from 1.
            asked: devices that the server asks.
            wanted: replies that it waits for.
            steps: local steps of a device.
        """
        unanswered = {device: ABSENT for device in asked if self.joins(device) > round}
        times = list[tuple[float, int]]()
        for device in sorted(set(asked) - set(unanswered)):
            luck = stream(self.seed, "fleet", "round", round, device)
            if luck.random() < self.failing:
                unanswered[device] = "failed"
            else:
                jitter = math.exp(self.jitter * luck.standard_normal())
                times.append((steps * self.seconds * self.speed(device) * jitter, device))
        times.sort()
        there = [(time, device) for time, device in times if time <= self.deadline]
        unanswered |= {device: "late" for _, device in times[len(there) :]}
        unanswered |= {device: "not needed" for _, device in there[wanted:]}
        counted = there[:wanted]
        waits = len(counted) < wanted and self.deadline < math.inf
        seconds = self.deadline if waits else max((time for time, _ in counted), default=0.0)
        answering = sorted(device for _, device in counted)
        return Fates(answering, unanswered, seconds, {device: time for time, device in counted})

    def speed(self, device: int) -> float:
        """Return s_i: how much longer than the median a device takes."""
        return math.exp(self.spread * stream(self.seed, "fleet", "speed", device).standard_normal())

    def joins(self, device: int) -> int:
        """Return the first round in which a device is there."""
        luck = stream(self.seed, "fleet", "joins", device)
        if luck.random() >= self.joining or self.rounds < 2:
            return 1
        return int(luck.integers(2, self.rounds + 1))
