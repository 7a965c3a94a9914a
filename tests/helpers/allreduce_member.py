"""A member of generations as a process of its own; what the ledger would tell it comes down a pipe.

Commands
    grant {number, rank, world, host, port, source}    form the generation, attach, adopt
    train {steps, hold_step, hold_at, bulky, tell_step}
                                                       make steps; at hold_step stand still at "take", "backward" or
                                                       "transfer" (a bulky reduction on its way) until "go"; say so
                                                       when tell_step is applied
    go, close, exit                                    obeyed at once, also in the middle of a step
Every command but "go" and "close" is answered once: {"did": ..., "step": ..., "digest": ...}.
"""

from __future__ import annotations

import queue
import threading
from hashlib import blake2b
from multiprocessing.connection import Connection
from typing import Any

import torch
from antdt.strategies.allreduce import AllReduce, AllReduceReplica, Generation, GenerationClosed, Rendezvous, store_of
from torch import nn

BULK_SIZE = 2**24  # elements: larger than any socket buffer


class Momentum:
    """SGD with momentum. By hand, because constructing one of torch's own imports its compiler: seconds."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": list(params)}]
        self.velocity = [torch.zeros_like(param) for param in self.param_groups[0]["params"]]

    def step(self) -> None:
        with torch.no_grad():
            for param, velocity in zip(self.param_groups[0]["params"], self.velocity, strict=True):
                param.sub_(velocity.mul_(0.9).add_(param.grad), alpha=0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self.velocity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for velocity, loaded in zip(self.velocity, state["velocity"], strict=True):
            velocity.copy_(loaded)


class Member:
    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        torch.set_num_threads(1)
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 512), nn.BatchNorm1d(512), nn.Tanh(), nn.Linear(512, 3))
        options = AllReduce(first_bucket_size_bytes=1024, bucket_size_bytes=4096)
        self.replica = AllReduceReplica(model, Momentum(model.parameters()), options)
        self.rendezvous = Rendezvous()
        self.generation: Generation | None = None
        self.closed = -1
        self.go = threading.Event()
        self.commands: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        while True:
            try:
                command = self.pipe.recv()
            except EOFError:
                break
            if command["do"] == "go":
                self.go.set()
            elif command["do"] == "close":
                self.closed = command["number"]
                if self.generation is not None:
                    self.generation.close()
            else:
                self.commands.put(command)
        self.commands.put({"do": "exit"})

    def serve(self) -> None:
        self.say("ready", host=self.rendezvous.host, port=self.rendezvous.port)
        while (command := self.commands.get())["do"] != "exit":
            try:
                self.grant(command) if command["do"] == "grant" else self.train(command)
                self.say(command["do"])
            except GenerationClosed as closed:
                self.replica.abort()
                self.generation = None
                self.say("closed", why=str(closed))
        self.replica.abort()

    def grant(self, command: dict[str, Any]) -> None:
        number = command["number"]
        store = store_of(command["host"], command["port"])
        generation = Generation(number, command["world"], command["rank"], store, lambda: self.closed >= number)
        self.generation = generation
        self.replica.attach(generation)
        self.replica.adopt(command["source"])

    def train(self, command: dict[str, Any]) -> None:
        replica, generation = self.replica, self.generation
        assert generation is not None
        for _ in range(command["steps"]):
            holds = command["hold_step"] == replica.step_number
            rank, samples = generation.rank, 2 + generation.rank
            replica.take([(10 * replica.step_number + rank, 1, 0, 0, samples)], samples, 0, False, 8)
            self.hold(holds and command["hold_at"] == "take")
            generator = torch.Generator().manual_seed(100 * replica.step_number + rank)
            x = torch.rand(samples, 6, generator=generator)
            replica.backward(((replica.model(x) - x[:, :3]) ** 2).sum(1).mean(), samples)
            self.hold(holds and command["hold_at"] == "backward")
            if command["bulky"]:
                self.transfer(generation, holds and command["hold_at"] == "transfer")
            replica.step()
            if command["tell_step"] == replica.step_number:
                self.say("applied")

    def transfer(self, generation: Generation, holds: bool) -> None:
        work = generation.allreduce(torch.ones(BULK_SIZE))
        self.hold(holds)
        generation.wait(work)

    def hold(self, holds: bool) -> None:
        if holds:
            self.go.clear()
            self.say("hold")
            self.go.wait()

    def say(self, did: str, **more: Any) -> None:
        state = self.replica.model.state_dict()
        digest = blake2b(b"".join(value.numpy().tobytes() for value in state.values()), digest_size=8).hexdigest()
        pending = [made.step for made in self.replica.pending]
        fields = {"step": self.replica.step_number, "lineage": self.replica.lineage.hex(), "pending": pending}
        self.pipe.send({"did": did, "digest": digest} | fields | more)


def serve(pipe: Connection) -> None:
    """The whole life of a member's process."""
    Member(pipe).serve()
