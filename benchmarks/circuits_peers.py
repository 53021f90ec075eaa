"""EAP by two other packages, on the same bridge: auto-circuit 1.0.1 and TransformerLens' own.

auto-circuit is no dependency of ours. It wants names that TransformerLens 4 has no more, and puts
its own modules in the place of hook points; both are made up for here, its computation is its own.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.common import device
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.circuits.task import Task

INSTALL = "pip install --no-deps auto-circuit==1.0.1 attrs ordered-set blobfile pycryptodomex lxml"


def has_auto_circuit() -> bool:
    """Whether auto-circuit and what it imports are installed."""
    names = ("auto_circuit", "attr", "ordered_set", "blobfile")
    return all(importlib.util.find_spec(name) for name in names)


def _aliases() -> None:
    """Give TransformerLens the names that auto-circuit imports."""
    import transformer_lens as tl

    if "HookedTransformerKeyValueCache" in vars(tl):
        return
    cache = type("HookedTransformerKeyValueCache", (), {})
    for module, name, value in (
        ("past_key_value_caching", "HookedTransformerKeyValueCache", cache),
        ("HookedTransformer", "HookedTransformer", TransformerBridge),
    ):
        if name not in vars(tl):
            setattr(tl, name, value)
            made: Any = types.ModuleType(f"transformer_lens.{module}")
            setattr(made, name, value)
            sys.modules[made.__name__] = made


class AutoCircuit:
    """auto-circuit's EAP of a task, on a bridge of its own, which it takes to pieces."""

    def __init__(self, model: TransformerBridge, task: Task) -> None:
        _aliases()
        from auto_circuit import types as ac_types
        from auto_circuit.data import PromptDataLoader, PromptDataset
        from auto_circuit.utils import graph_utils

        bridge: Any = model
        for flag in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"):
            getattr(bridge, f"set_{flag}")(True)
        find, wrappers = graph_utils.module_by_name, {}

        def replace(model: Any, name: str, new: Any) -> None:
            # A bridge's names are aliases and some of its hook points are held in closures, so the
            # hook point stays where it is and calls what should stand in its place.
            point = find(model, name)
            new.module = copy.copy(point)
            new.module._modules = {}
            point.add_module("replaced_by", new)
            point.forward = new.__call__
            wrappers[name] = new

        graph_utils.set_module_by_name = replace
        ac_types.module_by_name = lambda model, name: wrappers.get(name) or find(model, name)
        self.model = graph_utils.patchable_model(
            bridge,
            factorized=True,
            slice_output="last_seq",
            separate_qkv=True,
            device=torch.device("cpu"),
        )
        self.edges = len(self.model.edges)
        pairs = PromptDataset(task.clean, task.corrupted, list(task.answers), list(task.incorrect))
        self.loader = PromptDataLoader(
            pairs, seq_len=None, diverge_idx=0, batch_size=len(task), shuffle=False
        )

    def eap(self) -> dict[str, Tensor]:
        """Gradients of its masks at 0, which it calls equal to EAP, by name of a hook point."""
        from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores

        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            return mask_gradient_prune_scores(
                self.model,
                self.loader,
                None,
                grad_function="logit",
                answer_function="avg_diff",
                mask_val=0.0,
            )

    def values(self, graph: ComponentGraph) -> Float[Tensor, "destination source"]:
        """Its scores in our order; its loss is minus the metric, so the sign is ours."""
        values = torch.zeros(graph.destinations, graph.sources)
        for name, scores in self.eap().items():
            kind = re.fullmatch(r"blocks\.(\d+)\.hook_(?:(.)_input|mlp_in|resid_post)", name)
            if kind is None:
                raise RuntimeError(f"auto-circuit scored {name}")
            first = int(kind[1]) * graph.destinations_per_layer
            if kind[2]:
                first += "qkv".index(kind[2]) * graph.heads
                values[first : first + graph.heads, : scores.shape[1]] = scores
            elif name.endswith("mlp_in"):
                values[first + 3 * graph.heads, : len(scores)] = scores
            else:
                values[-1, : len(scores)] = scores
        return values


def scores_edges() -> bool:
    """Whether this TransformerLens has edge scores: 3.9 only declares them."""
    try:
        from transformer_lens.tools.analysis import attribution_patching as peer

        peer.EdgeAttributionConfig(granularity="edge")
    except (ImportError, NotImplementedError):
        return False
    return True


def transformer_lens_scores(
    model: TransformerBridge, task: Task, graph: ComponentGraph
) -> Float[Tensor, "destination source"]:
    """TransformerLens' own edge scores, summed over positions, in our order and sign.

    It takes gradients at its corrupted prompts and clean outputs less corrupted ones. With the two
    exchanged that is EAP with its sign turned.
    """
    from transformer_lens.tools.analysis import attribution_patching as peer

    answers, pairs = iter(zip(task.answers, task.incorrect, strict=True)), len(task)
    values = torch.zeros(graph.destinations, graph.sources, dtype=torch.float64)
    with _weights_with_gradients(model):
        for pair in range(pairs):
            found = peer.attribution_patch(
                model,
                task.corrupted[pair : pair + 1].to(device()),
                task.clean[pair : pair + 1].to(device()),
                _difference(*next(answers)),
                peer.EdgeAttributionConfig(granularity="edge"),
            )
            for (writer, reader), value in found.edge_scores.items():
                place = graph.parse_edge(f"{_name(writer)}->{_name(reader)}")
                values[place] -= value / pairs
    return values


def _difference(answers: Tensor, wrong: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[0, -1, answers].mean() - logits[0, -1, wrong].mean()


@contextlib.contextmanager
def _weights_with_gradients(model: torch.nn.Module) -> Iterator[None]:
    """Its gradients do not flow through a model whose weights ask for none."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, asked in before:
            parameter.requires_grad_(asked)


def _name(node: Any) -> str:
    """Our name of a node of TransformerLens."""
    if node.kind in ("embed", "logits"):
        return node.kind
    if node.kind.startswith("mlp"):
        return f"m{node.layer}"
    kind = re.fullmatch(r"(.)_input", node.kind)
    return f"a{node.layer}.h{node.head}" + (f"<{kind[1]}>" if kind else "")
