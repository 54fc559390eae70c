"""Choice points: the source of Fig. 9 of arXiv 2404.19737 (Section 5.1, Appendix L.3), every entropy of which is known.

A document goes round a circuit of stations. At each a road of fixed tokens leads to a choice between branches, and the
choice decides k tokens, itself the first; then the branches meet in the next station's road:

    a1 a2 a3 A2 b1 b2 b3 B0.1 B0.2 B0.3 B0.4 a1 a2 a3 A3 b1 b2 b3 B1.1 ...

With k = 1 the branches meet at once: the paper's inconsequential transition. With k at least n a choice counts
n (n + 1) / 2 times where any other token counts n times.

A station's branches follow on each other from lap to lap. With b branches, the next is

    (the last + 1 + D) mod b,    P(D = j) proportional to exp(-beta j), j = 0 .. b - 1,

with beta such that D has the entropy asked for; the first is uniform. So a choice has that entropy given all that came
before, which to know takes a look back by one lap and a step up; at log b it is pure chance, at 0 it is certain.

Entropies. Roads and a branch's later tokens are certain as soon as the choice is known. A token that a choice decides
which lies j choices of its station ahead has the entropy of the sum of j independent D mod b, or log b where the
station has not been met.
"""

import math
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab.config import Config
from lab.tasks.base import Examples, Split, Task, check_indices
from lab.tasks.draws import below, draws32, stream
from lab.tasks.scoring import Answers, Curve, Group, Metrics

_STATIONS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Station(Config):
    """A road and a choice."""

    branches: int = Field(default=4, ge=2, le=64)
    """b, the branches to choose between."""
    span: int = Field(default=1, ge=1, le=64)
    """k, the tokens that the choice decides, itself the first; 1: the branches meet again at once."""
    entropy: Annotated[float | None, Field(ge=0)] = None
    """Of the choice in nats, given the lap before; at most log(branches), which it is when null."""

    @model_validator(mode="after")
    def _possible(self) -> "Station":
        if self.entropy is not None and self.entropy > math.log(self.branches):
            most = math.floor(math.log(self.branches) * 1e4) / 1e4
            raise ValueError(
                f"entropy: {self.entropy} is not allowed with {self.branches} branches: at most {most:g} nats"
            )
        return self

    def steps(self) -> NDArray[np.float64]:
        """[b] P(D = j): how far beyond the next branch a choice goes; multiples of 1 / 2^32, as they are drawn."""
        asked, b = math.log(self.branches) if self.entropy is None else self.entropy, self.branches
        if asked >= math.log(b) - 1e-9:
            law = np.full(b, 1 / b)
        elif asked == 0:
            law = np.eye(b)[0]
        else:
            from scipy.optimize import brentq  # takes half a second to import, for which every command would wait

            law = _geometric(float(brentq(lambda beta: entropy(_geometric(beta, b)) - asked, 1e-6, 800.0)), b)
        ends = np.round(np.cumsum(law) * 2**32)
        return np.diff(ends, prepend=0.0) / 2**32


def _geometric(beta: float, b: int) -> NDArray[np.float64]:
    weights = np.exp(-beta * np.arange(b))
    return weights / weights.sum()  # type: ignore[no-any-return]


def entropy(law: NDArray[np.float64]) -> float:
    """The entropy of a distribution, in nats."""
    positive = law[law > 0]
    return float(-(positive * np.log(positive)).sum())


class Choices(Config):
    """A circuit of choice points whose entropies are known."""

    name: Literal["choices"] = "choices"
    stations: list[Station] = Field(
        default=[Station(span=1), Station(span=2), Station(span=4), Station(span=8)], min_length=1, max_length=26
    )
    """What the circuit consists of, in order."""
    road: int = Field(default=8, ge=1, le=64)
    """Tokens that lead to each choice; fewer than n, and heads look beyond one choice at the next."""
    laps: int = Field(default=3, ge=2, le=64)
    """Rounds of a document, which may begin at any station."""
    validation_examples: int = Field(default=200, ge=1, le=1_000_000)
    """Validation documents."""
    test_examples: int = Field(default=500, ge=1, le=1_000_000)
    """Test documents."""

    def build(self) -> "ChoiceTask":
        """The task that this describes."""
        return ChoiceTask(self)


class ChoiceTask(Task):
    """Choice points as a task; see the module's documentation."""

    def __init__(self, config: Choices) -> None:
        self.config = config
        stations, road = config.stations, config.road
        self._laws = [station.steps() for station in stations]
        texts: list[str] = []
        place_station: list[int] = []  # of each place of the circuit
        place_offset: list[int] = []  # from the choice
        place_token: list[int] = []  # with branch 0
        for number, station in enumerate(stations):
            name = _STATIONS[number]
            place_station += [number] * (road + station.span)
            place_offset += range(-road, station.span)
            place_token += range(len(texts), len(texts) + road + station.span)
            texts += [f"{name.lower()}{step}" for step in range(1, road + 1)]
            ways = [f"{name}{branch}" for branch in range(station.branches)]
            parts = [""] if station.span == 1 else [f".{part}" for part in range(1, station.span + 1)]
            # Branch by branch, so that a place's token is that of branch 0 and `span` more for each branch further.
            texts += [way + part for way in ways for part in parts]
        self.vocabulary = tuple(texts)
        letters = _STATIONS[: len(stations)]
        self.metrics = Metrics(
            metric="choice_accuracy",
            baselines=("chance", "oracle"),
            groups=(Group("station", values=tuple(letters)),),
            curves=(
                Curve(("choice_accuracy",)),
                Curve(("choice_accuracy",), each="station", name="{measure}_{station}"),
            ),
            token_types=("road", *(f"{letter} {part}" for letter in letters for part in ("choice", "branch"))),
        )
        self._station, self._offset = np.array(place_station), np.array(place_offset)
        self._token, self._span = np.array(place_token), np.array([station.span for station in stations])
        self._begins = np.searchsorted(self._station, np.arange(len(stations)))
        self._circuit = len(place_station)

    def size(self, split: Split) -> int | None:
        """The number of examples in a split."""
        sizes = {"train": None, "validation": self.config.validation_examples, "test": self.config.test_examples}
        return sizes[split]

    def max_length(self, split: Split) -> int:
        """The tokens of every example."""
        return self.config.laps * self._circuit

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """The documents of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        check_indices(split, indices, self.size(split))
        names = ("choices", split, seed) if split == "train" else ("choices", split)
        stations, laps = len(self._laws), self.config.laps
        random = draws32(stream(*names), indices, 1 + stations * laps)
        start = self._begins[below(stations, random[:, 0]).astype(np.int64)]
        branches = self._branches(random[:, 1:].reshape(len(indices), stations, laps))

        # Every station is met once a lap, also by documents that begin between stations: its lap-th choice is branch
        # number `lap`, wherever the document begins.
        places = (start[:, None] + np.arange(laps * self._circuit)) % self._circuit
        lap = np.broadcast_to(np.arange(laps * self._circuit) // self._circuit, places.shape)
        station, offset = self._station[places], self._offset[places]
        branch = branches[np.arange(len(indices))[:, None], station, lap]
        decided = offset >= 0
        tokens = self._token[places] + decided * branch * self._span[station]
        chosen = offset == 0
        whole = np.ones(places.shape, np.bool_)
        return Examples(
            tokens=tokens.astype(np.uint16),
            lengths=np.full(len(indices), laps * self._circuit),
            loss_mask=whole,
            score_mask=chosen & (lap > 0),
            slices={"start": start},
            fingerprints=np.zeros((len(indices), 0), np.uint64),  # documents are too many to be met again
            token_features={"kind": np.where(decided, 1 + 2 * station + (offset > 0), 0).astype(np.uint8)},
            horizons=np.where(chosen, self._span[station], 1).astype(np.uint8),
        )

    def _branches(self, random: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The branch taken at each station on each lap, [N, S, laps], from as many draws."""
        steps = np.empty(random.shape, np.int64)
        for number, law in enumerate(self._laws):
            ends = np.round(np.cumsum(law)[:-1] * 2**32)
            steps[:, number] = 1 + np.searchsorted(ends, random[:, number], side="right")
            steps[:, number, 0] = below(len(law), random[:, number, 0])
        counts = np.array([len(law) for law in self._laws])
        return np.cumsum(steps, axis=2) % counts[:, None]  # type: ignore[no-any-return]

    def entropies(self, examples: Examples, n: int) -> NDArray[np.float64]:
        """H(x_{t+i} | x_1..x_t) in nats, in closed form; see `Known.entropies`."""
        length = examples.tokens.shape[1]
        here = np.arange(length)
        found = np.full((*examples.tokens.shape, n), np.nan)
        for ahead in range(1, n + 1):
            there = here[: length - ahead] + ahead
            places = (examples.slices["start"][:, None] + there) % self._circuit
            station, offset = self._station[places], self._offset[places]
            chosen = there - offset  # the place of the choice that decides what is there
            unknown = np.maximum(0, -(-(chosen - here[: length - ahead]) // self._circuit))  # choices yet to be made
            met = chosen - unknown * self._circuit >= 0
            values = np.zeros(places.shape)
            ours = (offset >= 0) & (unknown > 0)
            values[ours] = self._sums[station[ours], np.where(met, unknown, 0)[ours]]
            found[:, : length - ahead, ahead - 1] = values
        return found

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """[S, laps + 1] the entropy of the sum of j independent D of a station, modulo b; uniform in place of j = 0."""
        table = np.empty((len(self._laws), self.config.laps + 1))
        for number, law in enumerate(self._laws):
            table[number, 0] = math.log(len(law))
            spread = np.fft.fft(law)
            for j in range(1, self.config.laps + 1):
                table[number, j] = entropy(np.maximum(np.fft.ifft(spread**j).real, 0.0))
        return table

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Roads, and each station's choice and what follows from it; see `Task.token_type`."""
        return examples.token_features["kind"]

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Example `row`: `text`, `choices` and `tokens`.

        `choices` lists, in order, the `position` of each choice, its `station` and `branch`, both from 0 on, and its
        `span`.
        """
        tokens, kind = examples.tokens[row], examples.token_features["kind"][row].astype(np.int64)
        positions = np.flatnonzero(kind % 2)
        station = (kind[positions] - 1) // 2
        begins = self._token[self._begins + self.config.road]  # the token of each station's branch 0
        branch = (tokens[positions] - begins[station]) // self._span[station]
        return {
            "text": self.text(tokens.tolist()),
            "choices": [
                {"position": position, "station": one, "branch": way, "span": int(self._span[one])}
                for position, one, way in zip(positions.tolist(), station.tolist(), branch.tolist(), strict=True)
            ],
            "tokens": tokens.tolist(),
        }

    def answers(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> Answers:
        """Return a row for each choice from the second lap on; see `Task.answers`.

        - `station`: its letter.
        - `choice_accuracy`: True if the predicted branch is the true one.
        - `chance`: the probability that a random branch is.
        - `oracle`: the probability of the likeliest branch, given the lap before.
        """
        rows, places = np.nonzero(examples.score_mask)
        station = (examples.token_features["kind"][rows, places].astype(np.int64) - 1) // 2
        return {
            "station": np.array(list(_STATIONS))[station],
            "choice_accuracy": predicted[rows, places] == examples.tokens[rows, places],
            "chance": np.array([1 / len(law) for law in self._laws])[station],
            "oracle": np.array([law.max() for law in self._laws])[station],
        }
