"""RASP programs compiled by Tracr to the weights of a transformer whose circuit is then known.

Lindner et al. (2023), "Tracr: Compiled Transformers as a Laboratory for Interpretability". Tracr
and JAX are imported when a program is compiled, not before. A compiled model reads in both
directions, has no norms, and every prompt starts with a BOS. It does not mask its PAD, so only
prompts of one length are batched. A program's tables of tokens and values are sorted, so the
weights are the same in every process.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strace_lens.circuits.task import Task
from strace_lens.ground_truth.weights import Weights
from strace_lens.utils.errors import FixableError

Token = str | int
Value = str | int | float | bool | None
BOS = "BOS"


class MissingTracrError(FixableError, ImportError):
    """Tracr is not installed; the message says how to bring it."""


class Program(NamedTuple):
    """A RASP program and the inputs it is compiled for."""

    build: Callable[[Any, Any], Any]  # from Tracr's own modules `lib` and `rasp`
    vocabulary: tuple[Token, ...]  # the tokens it reads, sorted
    length: int = 5  # tokens of an input, BOS not counted; the model's context is one more
    distinct: bool = False  # its inputs have no token twice


_ABC = ("a", "b", "c")

PROGRAMS: dict[str, Program] = {
    "reverse": Program(lambda lib, rasp: lib.make_reverse(rasp.tokens), _ABC),
    "fraction-of-previous": Program(
        lambda lib, rasp: lib.make_frac_prevs(rasp.tokens == "x"), ("w", "x", "y")
    ),
    "histogram": Program(lambda lib, rasp: lib.make_hist(), _ABC),
    "pair-balance": Program(
        lambda lib, rasp: lib.make_pair_balance(rasp.tokens, "(", ")"), ("(", ")", "a")
    ),
    "count": Program(lambda lib, rasp: lib.make_count(rasp.tokens, "a"), _ABC),
    "sort": Program(
        lambda lib, rasp: lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=5, min_key=1),
        (1, 2, 3),
    ),
    "sort-unique": Program(
        lambda lib, rasp: lib.make_sort_unique(rasp.tokens, rasp.tokens),
        (1, 2, 3, 4, 5, 6),
        length=4,  # with as many tokens as the vocabulary the output would be always the same
        distinct=True,
    ),
    "detect-ab": Program(lambda lib, rasp: lib.detect_pattern(rasp.tokens, "ab"), _ABC),
    "shift": Program(lambda lib, rasp: lib.shift_by(1, rasp.tokens), _ABC),
    "count-less-freq": Program(lambda lib, rasp: lib.make_count_less_freq(2), _ABC),
}
"""Programs by name, from Tracr's own library."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled program.

    Attributes:
        name: its key in `PROGRAMS`.
        program: what was compiled.
        weights: of the transformer.
        ids: token id of every token of the vocabulary.
        bos: id of the BOS that starts every prompt.
        values: the value that each output unit stands for; None where the one unit is the value.
        interpret: the RASP interpreter, from a list of tokens to a list of values. None is a value
            that the program leaves undefined; there the model's output means nothing.
    """

    name: str
    program: Program
    weights: Weights
    ids: Mapping[Token, int]
    bos: int
    values: tuple[Value, ...] | None
    interpret: Callable[[list[Any]], list[Value]]

    def decode(self, logits: Float[Tensor, "pos out"]) -> list[Value]:
        """Values that the model puts out after the BOS."""
        if self.values is None:
            return logits[1:, 0].tolist()
        return [self.values[i] for i in logits[1:].argmax(-1).tolist()]


def compile_program(name: str) -> Compiled:
    """Compile a program by name, in a few seconds the first time.

    Raises:
        ValueError: there is no program of that name.
        MissingTracrError: Tracr is not installed.
    """
    if name not in PROGRAMS:
        raise ValueError(f"unknown program {name!r}; choose from {', '.join(PROGRAMS)}")
    try:
        import tracr.compiler.compiling  # noqa: F401
    except ImportError as error:
        raise MissingTracrError(
            f"Tracr is not installed ({error}); bring it with: pip install strace-lens[tracr]"
        ) from error
    return _compile(name)


@functools.lru_cache
def _compile(name: str) -> Compiled:
    from tracr.compiler import compiling, lib
    from tracr.rasp import rasp

    program = PROGRAMS[name]
    built = program.build(lib, rasp)
    model: Any = compiling.compile_rasp_to_model(
        built, vocab=set(program.vocabulary), max_seq_len=program.length, compiler_bos=BOS
    )
    ids = model.input_encoder.encoding_map
    values = getattr(model.output_encoder, "encoding_map", None)
    return Compiled(
        name=name,
        program=program,
        weights=_weights(model),
        ids={token: int(ids[token]) for token in program.vocabulary},
        bos=int(ids[BOS]),
        values=None if values is None else tuple(sorted(values, key=values.__getitem__)),
        interpret=built,
    )


def every_input(program: Program) -> list[tuple[Token, ...]]:
    """All inputs of a program's full length."""
    if program.distinct:
        return list(itertools.permutations(program.vocabulary, program.length))
    return list(itertools.product(program.vocabulary, repeat=program.length))


def tracr_task(compiled: Compiled, pairs: int = 32, seed: int = 0) -> Task:
    """Random inputs of a program, each beside another with another output.

    The output is read at every position, by the share of the way from corrupted to clean.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = every_input(compiled.program)
    outputs = [compiled.interpret(list(tokens)) for tokens in inputs]

    def draw() -> int:
        return int(torch.randint(len(inputs), (), generator=generator))

    chosen: list[tuple[int, int]] = []
    while len(chosen) < pairs:
        clean, corrupted = draw(), draw()
        if outputs[clean] != outputs[corrupted]:
            chosen.append((clean, corrupted))
    name = f"tracr-{compiled.name}"
    return paired_task(compiled, name, [(inputs[a], inputs[b]) for a, b in chosen], seed=seed)


def paired_task(
    compiled: Compiled,
    name: str,
    pairs: Sequence[tuple[Sequence[Token], Sequence[Token]]],
    **made: Any,
) -> Task:
    """The task of given pairs (clean, corrupted) of inputs of one length."""
    clean, corrupted = (prompts(compiled, side) for side in zip(*pairs, strict=True))
    none = torch.full((len(pairs), 1), -1)
    texts = tuple((" ".join(map(str, a)), " ".join(map(str, b))) for a, b in pairs)
    return Task(
        name=name,
        clean=clean,
        corrupted=corrupted,
        lengths=torch.full((len(pairs),), clean.shape[1]),
        answers=none,
        incorrect=none,
        metric="recovered",
        every_position=True,
        texts=texts,
        metadata={"program": compiled.name, **made},
    )


def prompts(compiled: Compiled, inputs: Sequence[Sequence[Token]]) -> Int[Tensor, "input pos"]:
    """Token ids of inputs of one length, the BOS first."""
    rows = [[compiled.bos, *(compiled.ids[token] for token in tokens)] for tokens in inputs]
    return torch.tensor(rows)


def _weights(model: Any) -> Weights:
    """The weights of an assembled Tracr model: Haiku's linear maps are (d_model, head * key)."""
    config = model.model_config
    heads, d_head, layers = config.num_heads, config.key_size, config.num_layers

    def parameter(module: str, name: str) -> Tensor:
        return torch.from_numpy(np.array(model.params[module][name], dtype=np.float32))

    def stacked(part: str, name: str = "w") -> Tensor:
        found = [parameter(f"transformer/layer_{n}/{part}", name) for n in range(layers)]
        return torch.stack(found)

    for part in ("query", "key", "value", "linear"):
        if bool(stacked(f"attn/{part}", "b").any()):
            raise ValueError(f"this Tracr gives attention a bias ({part}), which is not read")
    d_model = parameter("token_embed", "embeddings").shape[1]
    q, k, v = (
        stacked(f"attn/{part}").view(layers, d_model, heads, d_head).transpose(1, 2).contiguous()
        for part in ("query", "key", "value")
    )
    return Weights(
        W_E=parameter("token_embed", "embeddings"),
        W_pos=parameter("pos_embed", "embeddings"),
        W_Q=q,
        W_K=k,
        W_V=v,
        W_O=stacked("attn/linear").view(layers, heads, d_head, d_model),
        W_U=_unembedding(model, d_model),
        W_in=stacked("mlp/linear_1"),
        b_in=stacked("mlp/linear_1", "b"),
        W_out=stacked("mlp/linear_2"),
        b_out=stacked("mlp/linear_2", "b"),
        causal=bool(config.causal),
    )


def _unembedding(model: Any, d_model: int) -> Float[Tensor, "d_model out"]:
    """The unembedding is no parameter: it is what the compiled map makes of the unit vectors."""
    import haiku as hk
    import jax.numpy as jnp

    def unembed(x: Any) -> Any:
        return model.get_compiled_model().unembed(x, use_unembed_argmax=False)

    apply = hk.without_apply_rng(hk.transform(unembed)).apply
    made = np.array(apply(model.params, jnp.eye(d_model)[None]), dtype=np.float32)
    return torch.from_numpy(made.reshape(d_model, -1))
