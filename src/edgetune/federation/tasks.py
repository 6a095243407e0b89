"""A device's task as a message to a worker process, and back."""

from __future__ import annotations

from edgetune.federation.hands import Task
from edgetune.federation.pipes import Message

ANSWER = "answer"


def told_task(task: Task) -> Message:
    """Return the message; what a device is to be reminded of is told before it."""
    head = {
        "device": task.device,
        "turn": task.turn,
        "survey": task.survey,
        "choice": None if task.choice is None else task.choice.hex(),
    }
    return Message(ANSWER, head, task.payload)


def task_of(message: Message) -> Task:
    """Return the task of such a message."""
    head = message.head
    choice = None if head["choice"] is None else bytes.fromhex(head["choice"])
    return Task(
        int(head["device"]), message.body, int(head["turn"]), survey=bool(head["survey"]), choice=choice
    )
