"""Choice points: a source with known entropies, after Fig. 9 of arXiv 2404.19737 (Section 5.1, Appendix L.3).

A document goes round a circuit of stations. At each station a road of fixed tokens leads to a choice between branches.
The choice determines k tokens, itself the first; then the branches meet in the next station's road:

    tokens     a1 a2 a3 A2 b1 b2 b3 B0.1 B0.2 B0.3 B0.4 a1 a2 a3 A3 b1 b2 b3 B1.1 B1.2 B1.3 B1.4
    k                   1           4                            1           4
    scored                                                       ^           ^       (from the second lap on)

With k = 1 the branches meet at once: the paper's inconsequential transition. With k at least n, a choice counts
n (n + 1) / 2 times in the loss, and any other token n times.

The branch at a station depends on the branch there on the lap before. With b branches, the next one is

    (the last + 1 + D) mod b,    P(D = j) proportional to exp(-beta j), j = 0 .. b - 1,

with beta such that D has the configured entropy. The first branch is uniform. To predict a choice, a model looks back
by one lap and adds one. At an entropy of log b the choice is uniform, at 0 it is certain.

Entropies. Roads and a branch's later tokens are certain once the choice is known. A token determined by a choice that
lies j choices of its station ahead has the entropy of the sum of j independent D mod b, or log b if the document has
not reached the station before.
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
    """k, the tokens that the choice determines, itself the first; 1: the branches meet again at once."""
    entropy: Annotated[float | None, Field(ge=0)] = None
    """Entropy of the choice in nats, given the lap before; at most log(branches), which is also the value of null."""

    @model_validator(mode="after")
    def _possible(self) -> "Station":
        if self.entropy is not None and self.entropy > math.log(self.branches):
            most = math.floor(math.log(self.branches) * 1e4) / 1e4
            raise ValueError(
                f"entropy: {self.entropy} is not allowed with {self.branches} branches: at most {most:g} nats"
            )
        return self

    def steps(self) -> NDArray[np.float64]:
        """Return P(D = j) for j = 0 .. b - 1, [b], rounded to multiples of 1 / 2^32, as it is drawn."""
        b = self.branches
        wanted = math.log(b) if self.entropy is None else self.entropy
        if wanted >= math.log(b) - 1e-9:
            distribution = np.full(b, 1 / b)
        elif wanted == 0:
            distribution = np.eye(b)[0]
        else:
            from scipy.optimize import brentq  # takes half a second to import, for which every command would wait

            beta = float(brentq(lambda beta: entropy(_geometric(beta, b)) - wanted, 1e-6, 800.0))
            distribution = _geometric(beta, b)
        ends = np.round(np.cumsum(distribution) * 2**32)
        return np.diff(ends, prepend=0.0) / 2**32


def _geometric(beta: float, b: int) -> NDArray[np.float64]:
    weights = np.exp(-beta * np.arange(b))
    return weights / weights.sum()  # type: ignore[no-any-return]


def entropy(distribution: NDArray[np.float64]) -> float:
    """Return the entropy of a distribution, in nats."""
    positive = distribution[distribution > 0]
    return float(-(positive * np.log(positive)).sum())


class Choices(Config):
    """A circuit of choice points whose entropies are known."""

    name: Literal["choices"] = "choices"
    stations: list[Station] = Field(
        default=[Station(span=1), Station(span=2), Station(span=4), Station(span=8)], min_length=1, max_length=26
    )
    """The stations of the circuit, in order."""
    road: int = Field(default=8, ge=1, le=64)
    """Tokens before each choice. If they are fewer than n, heads predict beyond one choice to the next."""
    laps: int = Field(default=3, ge=2, le=64)
    """Rounds of a document, which may begin at any station."""
    validation_examples: int = Field(default=200, ge=1, le=1_000_000)
    """Validation documents."""
    test_examples: int = Field(default=500, ge=1, le=1_000_000)
    """Test documents."""

    def build(self) -> "ChoiceTask":
        """Return the task of this config."""
        return ChoiceTask(self)


class ChoiceTask(Task):
    """Choice points as a task; see the module's documentation."""

    def __init__(self, config: Choices) -> None:
        self.config = config
        stations, road = config.stations, config.road
        self._distributions = [station.steps() for station in stations]
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
        """Return the number of examples in a split."""
        sizes = {"train": None, "validation": self.config.validation_examples, "test": self.config.test_examples}
        return sizes[split]

    def max_length(self, split: Split) -> int:
        """Return the number of tokens of every example."""
        return self.config.laps * self._circuit

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """Return the documents of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        check_indices(split, indices, self.size(split))
        names = ("choices", split, seed) if split == "train" else ("choices", split)
        stations, laps = len(self._distributions), self.config.laps
        random = draws32(stream(*names), indices, 1 + stations * laps)
        start = self._begins[below(stations, random[:, 0]).astype(np.int64)]
        branches = self._branches(random[:, 1:].reshape(len(indices), stations, laps))

        # Every lap passes each station once, also in documents that begin between stations. So the choice at a station
        # on lap number `lap` is its branch number `lap`.
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
            fingerprints=np.zeros((len(indices), 0), np.uint64),  # no document is likely to occur twice
            token_features={"kind": np.where(decided, 1 + 2 * station + (offset > 0), 0).astype(np.uint8)},
            horizons=np.where(chosen, self._span[station], 1).astype(np.uint8),
        )

    def _branches(self, random: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the branch [N, S, laps] at each station on each lap, from random numbers of the same shape."""
        steps = np.empty(random.shape, np.int64)
        for number, distribution in enumerate(self._distributions):
            ends = np.round(np.cumsum(distribution)[:-1] * 2**32)
            steps[:, number] = 1 + np.searchsorted(ends, random[:, number], side="right")
            steps[:, number, 0] = below(len(distribution), random[:, number, 0])
        counts = np.array([len(distribution) for distribution in self._distributions])
        return np.cumsum(steps, axis=2) % counts[:, None]  # type: ignore[no-any-return]

    def entropies(self, examples: Examples, n: int) -> NDArray[np.float64]:
        """Return H(x_{t+i} | x_1..x_t) in nats, in closed form; see `HasEntropies.entropies`."""
        length = examples.tokens.shape[1]
        here = np.arange(length)
        found = np.full((*examples.tokens.shape, n), np.nan)
        for ahead in range(1, n + 1):
            there = here[: length - ahead] + ahead
            places = (examples.slices["start"][:, None] + there) % self._circuit
            station, offset = self._station[places], self._offset[places]
            chosen = there - offset  # the position of the choice that determines the token
            unknown = np.maximum(0, -(-(chosen - here[: length - ahead]) // self._circuit))  # choices still ahead
            visited = chosen - unknown * self._circuit >= 0
            values = np.zeros(places.shape)
            ours = (offset >= 0) & (unknown > 0)
            values[ours] = self._sums[station[ours], np.where(visited, unknown, 0)[ours]]
            found[:, : length - ahead, ahead - 1] = values
        return found

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """[S, laps + 1] the entropy of the sum of j independent D of a station, modulo b; log b for j = 0."""
        table = np.empty((len(self._distributions), self.config.laps + 1))
        for number, distribution in enumerate(self._distributions):
            table[number, 0] = math.log(len(distribution))
            spectrum = np.fft.fft(distribution)
            for j in range(1, self.config.laps + 1):
                table[number, j] = entropy(np.maximum(np.fft.ifft(spectrum**j).real, 0.0))
        return table

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Return the type of each token [N, L]: road, choice or branch of a station; see `Task.token_type`."""
        return examples.token_features["kind"]

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Return example `row` as `text`, `choices` and `tokens`.

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
            "chance": np.array([1 / len(distribution) for distribution in self._distributions])[station],
            "oracle": np.array([distribution.max() for distribution in self._distributions])[station],
        }
