"""What a sweep has to know of its model before the first batch is measured.

It is worked out where a model is, which with Ray is a worker: the process that starts the sweep
then needs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from strace_lens.corpus.batches import Batch, Item, batches_of, items_of
from strace_lens.corpus.prompts import CorpusPrompt
from strace_lens.corpus.setting import Options, Setting, setting_of
from strace_lens.model.architecture import Architecture, Model, device_of
from strace_lens.model.checks import architecture_of
from strace_lens.model.hold import verb
from strace_lens.model.weights import weights_hash
from strace_lens.traces.graph import shape_of
from strace_lens.utils.choices import kinds_to_keep
from strace_lens.utils.versions import versions


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sweep whose batches are ready to be measured.

    Attributes:
        facts: what a manifest says of the model, the options, the prompts and the versions.
        setting: what all batches share.
        batches: of all prompts, whether or not they were measured before.
    """

    facts: Mapping[str, Any]
    setting: Setting
    batches: Sequence[Batch]


@verb
def prepare(model: Model, prompts: Sequence[CorpusPrompt], options: Options) -> Prepared:
    """Tokenize the prompts of a sweep, batch them and say what its results depend on.

    Args:
        model: the model that will measure them, or another of the same weights.
        prompts: in the order in which they are numbered.
        options: of the sweep; a memory budget that is not given is the device's.
    """
    architecture = architecture_of(model)
    options = options.on(device_of(model))
    items = items_of(model, architecture, prompts, options)
    batches = batches_of(architecture, items, options)
    traceable = [item.original or item.prompt for item in items if item.prompt]
    weights = weights_hash(model)
    facts = {
        **_facts(model, architecture, options, weights),
        "tokens": _tokens_hash(items),
        "labels": sorted({name for item in items for name in item.labels}),
        "given": len(items),
        "batches": len(batches),
    }
    setting = setting_of(model, architecture, traceable, options, weights)
    return Prepared(facts, setting, batches)


def _facts(
    model: Model, architecture: Architecture, options: Options, weights: str
) -> dict[str, Any]:
    """What a manifest says of the model, the options and the versions."""
    shape = shape_of(architecture, 2)
    return {
        "model": architecture.name,
        "dtype": str(next(cast(Any, model).parameters()).dtype),
        "weights": weights,
        "options": {**asdict(options), "keep": kinds_to_keep(options.keep)},
        "versions": versions(),
        "sizes": list(options.sizes),
        "head": options.head,
        "shape": {name: getattr(shape, name) for name in ("layers", "heads", "sublayers", "mlp")},
    }


def _tokens_hash(items: Sequence[Item]) -> str:
    """Hash of the tokens of all prompts of a run, in their order."""
    ids = [item.prompt.ids if item.prompt else () for item in items]
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
