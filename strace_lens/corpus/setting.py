"""What all prompts of a sweep share: its options, and the distributions of shallow statistics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.density.curve import HEAD
from strace_lens.measures.sizes import check_sizes
from strace_lens.model.architecture import Architecture, Model
from strace_lens.model.forward import byte_budget, last_logits
from strace_lens.model.prompts import Prompt, own_tokenizer
from strace_lens.traces.estimators import estimator_of
from strace_lens.utils.choices import (
    GRADIENT_BUDGET,
    REFINE,
    SIZES,
    check_sweep_choices,
    kinds_to_keep,
)


@dataclass(frozen=True)
class Options:
    """What the results of a sweep depend on, besides its model and prompts.

    Attributes:
        estimator: how edges are ranked, a key of `ESTIMATORS`.
        keep: kinds of edges that are never ablated; none for the paper's definition, ("attention",)
            for what the authors' released evaluation computes.
        sizes: the grid that all prompts share, as increasing relative sizes.
        refine: maximum number of sizes to add to the grid for each prompt, where its curve changes
            and where head and tail are restored (`refinement`).
        controls: what is run at sizes of the grid besides the trace: "none"; "size", a random
            subgraph, its inverse and the inverse of the trace; "all", these and the controls of the
            estimator, which aim it at the output of another prompt, run its trace on a sibling
            prompt and under noise, and run it with another seed (`estimator_controls`).
        ablation: what replaces ablated edges: zero, or their mean over a page of prose.
        head: p of the head of the distribution.
        seed: seed of estimators with random draws, the random control, generated tokens and
            corruption.
        bos: whether prompts start with a BOS token; None leaves this to the tokenizer.
        hidden: store the geometry of the hidden states, at sizes of the grid.
        generate: number of tokens that the model adds to each prompt, each traced as a new prompt.
        temperature: temperature of the added tokens; 0 adds the most probable ones. What is drawn
            for a prompt depends only on the seed and its text.
        top_p: share of the probability from which tokens are drawn, the most probable ones first.
        corrupt: what is done to each text before it is traced: "none"; "shuffle", its words are
            shuffled; "random", its tokens are replaced by others of the vocabulary. Results are
            stored under the original text, so runs with and without can be compared by prompt.
        corrupt_rate: share of the words or tokens that are corrupted.
        memory_budget: bytes that one forward pass may take, which also determines the batches; by
            default it depends on the device (`byte_budget`).
        gradient_budget: bytes of a forward and backward pass.
        threads: number of torch's threads on the CPU; the last bits of a result depend on it.
    """

    estimator: str = "greedy"
    keep: tuple[str, ...] = ()
    sizes: tuple[float, ...] = SIZES
    refine: int = REFINE
    controls: str = "size"
    ablation: str = "zero"
    head: float = HEAD
    seed: int = 0
    bos: bool | None = None
    hidden: bool = True
    generate: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    corrupt: str = "none"
    corrupt_rate: float = 1.0
    memory_budget: int | None = None
    gradient_budget: int = GRADIENT_BUDGET
    threads: int = dataclasses.field(default_factory=torch.get_num_threads)

    def __post_init__(self) -> None:
        estimator_of(self.estimator)
        kinds_to_keep(self.keep)
        check_sizes(np.asarray(self.sizes, dtype=np.float64))
        check_sweep_choices(self.ablation, self.controls, self.corrupt)
        least = {"refine": 0, "generate": 0, "memory_budget": 1, "gradient_budget": 1, "threads": 1}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise ValueError(f"{name} must be at least {value}; got {given}")
        for wrong, why in self._problems():
            if wrong:
                raise ValueError(why)

    def _problems(self) -> Iterator[tuple[bool, str]]:
        """Whether each thing is wrong that may be, and how it is said."""
        yield not 0 < self.head < 1, f"head must lie in (0, 1); got {self.head}"
        yield (
            self.controls == "all" and (self.generate > 0 or self.corrupt != "none"),
            "the controls of an estimator are of prompts as given; set controls to size "
            "(--controls size), or neither generate nor corrupt",
        )
        yield (
            not 0 <= self.temperature < math.inf,
            f"temperature must be 0 or a positive number; got {self.temperature}",
        )
        yield not 0 < self.top_p <= 1, f"top_p must lie in (0, 1]; got {self.top_p}"
        yield (
            self.temperature > 0 and not self.generate,
            f"temperature {self.temperature:g} is of generated tokens, and none are; set "
            "generate (--generate) too",
        )
        yield (
            self.top_p < 1 and self.temperature == 0,
            f"top_p {self.top_p:g} has no effect at temperature 0; set temperature "
            "(--temperature) too",
        )
        yield (
            not 0 < self.corrupt_rate <= 1,
            f"corrupt_rate must lie in (0, 1]; got {self.corrupt_rate}",
        )
        yield (
            self.corrupt == "none" and self.corrupt_rate != 1,
            f"corrupt_rate {self.corrupt_rate:g} has no effect where texts are not corrupted; "
            "set corrupt (--corrupt) too",
        )
        yield (
            self.corrupt != "none" and self.generate > 0,
            "a sweep cannot both corrupt texts and add tokens to them; set corrupt or generate",
        )

    def on(self, device: torch.device) -> Options:
        """The options with the memory budget set to that of a device, if it is None.

        Batches depend on it, so the manifest of a run holds a number.
        """
        return dataclasses.replace(self, memory_budget=byte_budget(self.memory_budget, device))

    @property
    def pass_bytes(self) -> int:
        """The memory budget, once the device is known: see `on`."""
        assert self.memory_budget is not None
        return self.memory_budget

    @property
    def size_controls(self) -> bool:
        """Whether the controls of equal size are run."""
        return self.controls != "none"


@dataclass(frozen=True, eq=False)
class Setting:
    """Options, and what traces are compared with besides the model's output.

    Attributes:
        options: of the sweep.
        unigram: share of each token among all tokens of the prompts.
        no_context: probabilities that the model gives after a BOS alone; None without a BOS.
        weights: hash of the model's weights (`weights_hash`).
    """

    options: Options
    unigram: Float[Tensor, " vocab"]
    no_context: Float[Tensor, " vocab"] | None
    weights: str


def setting_of(
    model: Model,
    architecture: Architecture,
    prompts: Sequence[Prompt],
    options: Options,
    weights: str,
) -> Setting:
    """The setting of a sweep over some prompts, by a model whose weights have a hash."""
    counts = torch.zeros(architecture.d_vocab, dtype=torch.float64)
    bos = getattr(own_tokenizer(model), "bos_token_id", None)
    for prompt in prompts:
        own = prompt.tensor[1:] if prompt.ids[0] == bos else prompt.tensor
        counts += torch.bincount(own, minlength=architecture.d_vocab)
    no_context = None
    if bos is not None:
        no_context = last_logits(model, architecture, torch.tensor([[bos]]))[0].double().softmax(-1)
    return Setting(options, counts / counts.sum().clamp_min(1), no_context, weights)
