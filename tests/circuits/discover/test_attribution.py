"""Attribution against slow derivatives in each edge's share, and against TransformerLens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.circuits_peers import (
    AutoCircuit,
    has_auto_circuit,
    scores_edges,
    transformer_lens_scores,
)
from strace_lens.circuits.discover import attribution
from strace_lens.circuits.discover.gradients import (
    Values,
    destination_gradients,
    read_gradients,
)
from strace_lens.circuits.discover.run_method import discover
from strace_lens.circuits.experiment import make_experiment
from strace_lens.circuits.run_circuits import circuit_metric
from strace_lens.circuits.wiring import wiring_of
from strace_lens.ground_truth.linear import linear_task, linear_weights
from strace_lens.ground_truth.weights import model_of
from strace_lens.model.architecture import UnsupportedModelError
from tests import cases, oracle
from tests.circuits.discover.oracle_attribution import (
    difference_of,
    embeddings,
    group_scores,
    plain_scores,
    prompts_of,
    scores_at,
    share_derivatives,
)
from tests.circuits.made import (
    NAMES,
    double_experiment,
    double_model,
    plain_graph,
    tiny_task,
    uneven_task,
)
from tests.circuits.oracle_patching import full_run
from tests.ground_truth.exact_effects import exact_effects

TASK = tiny_task(2, 6)
METHODS = ("eap", "eap-ig", "eap-gp", "eap-ig-activations", "clean-corrupted")


def assert_close(ours: Tensor, truth: Tensor, tolerance: float = 1e-5) -> None:
    assert cases.relative_error(ours.double(), truth) < tolerance


# ------------------------------------------------------------------ eap


@pytest.mark.parametrize("name", NAMES)
def test_eap_is_the_derivative_in_each_edges_share(name: str) -> None:
    experiment = double_experiment(name, TASK)
    values = attribution.eap(experiment)
    assert_close(values, plain_scores(name, TASK))
    assert not values[~experiment.graph.exists].any()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gptj"])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_eap_of_other_ablations(name: str, ablation: str) -> None:
    values = attribution.eap(double_experiment(name, TASK, ablation=ablation))
    assert_close(values, plain_scores(name, TASK, ablation))


@pytest.mark.extended
@pytest.mark.parametrize("name", ["llama", "olmo2", "phi"])
def test_positions_apart(name: str) -> None:
    task = tiny_task(2, 3)
    experiment = double_experiment(name, task)
    values = attribution.eap(experiment, positions=True)
    assert_close(values, plain_scores(name, task, positions=True))
    for method in (attribution.eap, attribution.eap_ig, attribution.eap_ig_activations):
        assert_close(method(experiment, positions=True).sum(2), method(experiment).double())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_carries_nothing(name: str) -> None:
    task = uneven_task()
    assert_close(attribution.eap(double_experiment(name, task)), plain_scores(name, task))


def test_positions_need_prompts_of_one_length() -> None:
    with pytest.raises(ValueError, match="prompts of one length"):
        attribution.eap(double_experiment("llama", uneven_task()), positions=True)


def test_a_task_read_at_every_position() -> None:
    task = dataclasses.replace(TASK, every_position=True, metric="recovered")
    experiment = double_experiment("gpt2", task)
    truth = torch.zeros(experiment.graph.exists.shape, dtype=torch.float64)
    model = oracle.plain("gpt2")
    for pair in range(len(task)):
        clean, corrupted = (full_run(model, t) for t in prompts_of(task, pair))
        start, towards = corrupted.logits, clean.logits - corrupted.logits

        def measure(logits: Tensor, start: Tensor = start, towards: Tensor = towards) -> Tensor:
            return ((logits - start) * towards).sum() / towards.square().sum()

        tokens = prompts_of(task, pair)[0]
        truth += share_derivatives("gpt2", model, tokens, corrupted.outputs, measure) / len(task)
    assert_close(attribution.eap(experiment), truth)


@pytest.mark.extended
@pytest.mark.parametrize("method", METHODS)
def test_chunks_change_nothing(method: str) -> None:
    task, model = tiny_task(3, 3), cases.model_of("mistral")
    whole = discover(model, task, method)
    cut = discover(model, task, method, memory_budget=1)
    assert_close(cut.values, whole.values.double(), 5e-5)  # a path adds up what is rounded
    assert (cut.forwards, cut.backwards) == (whole.forwards, whole.backwards)


# ------------------------------------------------------------------ integrated gradients


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "shortformer"])
def test_eap_ig_over_inputs_against_a_slow_loop(name: str) -> None:
    truth = torch.zeros(plain_graph(name).exists.shape, dtype=torch.float64)
    for pair in range(len(TASK)):
        clean, corrupted = embeddings(name, TASK, pair)
        for k in (1, 2, 3):
            point = corrupted + (clean - corrupted) * k / 3
            truth += scores_at(name, TASK, pair, point, difference_of(TASK, pair)) / (3 * len(TASK))
    assert_close(attribution.eap_ig(double_experiment(name, TASK), steps=3), truth)


def test_eap_ig_in_one_step_is_eap() -> None:
    experiment = double_experiment("gpt2", TASK)
    assert_close(attribution.eap_ig(experiment, steps=1), attribution.eap(experiment).double())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_eap_gp_against_a_slow_loop(name: str) -> None:
    model, truth = oracle.plain(name), torch.zeros(plain_graph(name).exists.shape).double()
    for pair in range(len(TASK)):
        clean, corrupted = prompts_of(TASK, pair)
        target, (point, _) = full_run(model, corrupted).logits[-1], embeddings(name, TASK, pair)
        for _ in range(3):
            leaf = point.detach().requires_grad_()

            def embed(tokens: Tensor, leaf: Tensor = leaf) -> Tensor:
                return leaf

            with torch.enable_grad():
                logits = full_run(dataclasses.replace(model, embed=embed), clean).logits[-1]
                (gradient,) = torch.autograd.grad(((logits - target) ** 2).sum(), leaf)
            point = point - 0.5 * gradient / gradient.norm()
            truth += scores_at(name, TASK, pair, point, difference_of(TASK, pair)) / (3 * len(TASK))
    found = attribution.eap_gp(double_experiment(name, TASK), steps=3, step_length=0.5)
    assert_close(found, truth)


def test_eap_gp_that_hardly_moves_is_eap() -> None:
    experiment = double_experiment("gpt2", TASK)
    still = attribution.eap_gp(experiment, steps=2, step_length=1e-9)
    assert_close(still, attribution.eap(experiment).double())


@pytest.mark.parametrize("length", [0.0, -1.0, float("inf"), float("nan")])
def test_a_step_must_have_a_length(length: float) -> None:
    with pytest.raises(ValueError, match=f"step_length must be a positive number; got {length}"):
        discover(cases.model_of("mistral"), TASK, "eap-gp", step_length=length)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["llama", "bloom", "layernorm"])
def test_clean_corrupted_is_the_mean_of_both_ends(name: str) -> None:
    truth = torch.zeros(plain_graph(name).exists.shape, dtype=torch.float64)
    for pair in range(len(TASK)):
        # The runs differ in their embeddings alone, so the corrupted one is where the path starts.
        for point in embeddings(name, TASK, pair):
            truth += scores_at(name, TASK, pair, point, difference_of(TASK, pair)) / (2 * len(TASK))
    assert_close(attribution.clean_corrupted(double_experiment(name, TASK)), truth)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_kl_objective_against_a_slow_loop(name: str) -> None:
    truth = torch.zeros(plain_graph(name).exists.shape, dtype=torch.float64)
    for pair in range(len(TASK)):
        clean, corrupted = embeddings(name, TASK, pair)
        whole = full_run(oracle.plain(name), prompts_of(TASK, pair)[0]).logits[-1].log_softmax(-1)

        def measure(logits: Tensor, whole: Tensor = whole) -> Tensor:
            return -(whole.exp() * (whole - logits[-1].log_softmax(-1))).sum()

        for k in (1, 2):
            point = corrupted + (clean - corrupted) * k / 2
            truth += scores_at(name, TASK, pair, point, measure) / (2 * len(TASK))
    assert_close(attribution.eap_ig_kl(double_experiment(name, TASK), steps=2), truth, 1e-4)


def test_at_the_clean_prompt_the_kl_objective_has_no_gradient() -> None:
    values = attribution.eap_ig_kl(double_experiment("gpt2", TASK), steps=1)
    assert float(values.abs().max()) < 1e-6


def test_the_kl_objective_leaves_the_problem_as_it_was() -> None:
    experiment = make_experiment(cases.model_of("mistral"), TASK)
    attribution.eap_ig_kl(experiment, steps=1)
    assert experiment.metric == "logit_difference"
    assert_close(
        attribution.eap(experiment),
        attribution.eap(make_experiment(experiment.model, TASK)).double(),
    )


@pytest.mark.extended
@pytest.mark.parametrize("name", ["mistral", "gemma2", "phi", "attention_only"])
def test_eap_ig_over_activations_against_shares(name: str) -> None:
    values = attribution.eap_ig_activations(double_experiment(name, TASK), steps=2)
    assert_close(values, group_scores(name, TASK, steps=2))


@pytest.mark.extended
def test_in_many_steps_a_groups_out_edges_sum_to_its_effect() -> None:
    experiment = double_experiment("mistral", TASK)
    graph, exists = experiment.graph, experiment.graph.exists
    few, many = (attribution.eap_ig_activations(experiment, steps=n).double() for n in (8, 16))
    values = 2 * many - few  # the error of a sum of m steps falls as 1 / m; this takes that away
    # Not the first two: along their way attention jumps, which takes very many steps.
    groups = (slice(5, 6), slice(6, 10), slice(10, 11))
    assert groups[-1].stop == graph.sources
    keep = exists.repeat(1 + len(groups), 1, 1)
    for row, group in enumerate(groups, 1):
        keep[row, :, group] = False
    full, *without = circuit_metric(experiment, keep).mean(1).double()
    effects = torch.stack([full - other for other in without])
    sums = torch.stack([values[:, group].sum() for group in groups])
    assert float(effects.abs().min()) > 1e-2
    assert_close(sums, effects, 0.01)


@pytest.mark.extended
@pytest.mark.parametrize(
    "method",
    [
        attribution.eap,
        attribution.eap_ig,
        attribution.eap_gp,
        attribution.eap_ig_activations,
        attribution.clean_corrupted,
    ],
)
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_on_a_linear_model_all_are_exact(method: Any, ablation: str) -> None:
    weights, task = linear_weights(seed=3), linear_task(pairs=5, seed=4)
    experiment = make_experiment(model_of(weights, "linear"), task, ablation=ablation)
    effects = exact_effects(weights, task, ablation).mean(0)
    assert_close(method(experiment), effects.double(), 1e-4)


@pytest.mark.parametrize("method", ["eap-ig", "eap-gp", "eap-ig-kl", "eap-ig-activations"])
def test_steps_must_be_positive(method: str) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        discover(cases.model_of("mistral"), TASK, method, steps=0)


# ------------------------------------------------------------------ nodes


@pytest.mark.parametrize("name", ["llama", "olmo2", "gptj"])
def test_attribution_patching_is_the_gradient_of_whole_nodes(name: str) -> None:
    experiment = double_experiment(name, TASK)
    values, exists = attribution.attribution_patching(experiment), experiment.graph.exists
    nodes = plain_scores(name, TASK).sum(0)
    assert_close(values, nodes * exists)


def test_attribution_patching_against_autograd_at_the_hook_points() -> None:
    """The gradient of the stream that a node writes to, as the model's own backward pass has it."""
    model: Any = cases.model_of("gpt2")
    values = attribution.attribution_patching(make_experiment(model, TASK))
    graph = make_experiment(model, TASK).graph
    points = {"embed": "blocks.0.hook_resid_pre", "m0": "blocks.0.hook_mlp_out"}
    points["m2"] = "blocks.2.hook_mlp_out"
    kept: dict[str, dict[str, Tensor]] = {}
    for which, tokens in (("clean", TASK.clean), ("corrupted", TASK.corrupted)):
        found = kept.setdefault(which, {})

        def keep(name: str, found: dict[str, Tensor] = found) -> Any:
            def hook(value: Tensor, hook: Any) -> Tensor:
                found[name] = value.view_as(value).requires_grad_()
                return found[name]

            return hook

        hooks = [(point, keep(point)) for point in points.values()]
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
        found["logits"] = logits
    clean, corrupted = kept["clean"], kept["corrupted"]
    rows = torch.arange(len(TASK))[:, None]
    last = clean["logits"][:, -1]
    score = (last[rows, TASK.answers].mean(1) - last[rows, TASK.incorrect].mean(1)).sum()
    gradients = torch.autograd.grad(score, [clean[p] for p in points.values()])
    for (node, point), gradient in zip(points.items(), gradients, strict=True):
        change = (clean[point] - corrupted[point]).detach()
        ours = float(values[-1, graph.source_index(node)])
        assert ours == pytest.approx(float((gradient * change).sum()) / len(TASK), rel=1e-3)


# ------------------------------------------------------------------ what it costs


PASSES = {  # forward, backward; `mistral` has two layers
    "attribution-patching": (2, 1),
    "eap": (2, 1),
    "peap": (2, 1),
    "eap-ig": (2 + 5, 5),
    "eap-gp": (2 + 2 * 5, 2 * 5),
    "eap-ig-kl": (2 + 5, 5),
    "clean-corrupted": (4, 2),
    "eap-ig-activations": (2 + 5 * 5, 5 * 5),
}


@pytest.mark.extended
@pytest.mark.parametrize("method", PASSES)
def test_passes_are_counted(method: str) -> None:
    scores = discover(cases.model_of("mistral"), TASK, method)
    assert (scores.forwards, scores.backwards) == PASSES[method]


def test_passes_of_zero_ablation_and_of_other_steps() -> None:
    model = cases.model_of("mistral")
    scores = discover(model, TASK, "eap-ig", steps=2)
    assert (scores.forwards, scores.backwards) == (4, 2)
    assert scores.metadata["steps"] == 2
    # The metric's reference is the corrupted run, whatever replaces edges.
    scores = discover(model, TASK, "eap", ablation="zero")
    assert (scores.forwards, scores.backwards) == (2, 1)


# ------------------------------------------------------------------ other peers


@pytest.mark.skipif(not scores_edges(), reason="this TransformerLens scores no edges")
def test_transformer_lens_agrees() -> None:
    model = cases.fresh_bridge("gpt2")  # the one tiny model that it takes
    scores = discover(model, TASK, "eap")
    theirs = transformer_lens_scores(model, TASK, scores.graph)
    assert int((theirs != 0).sum()) == scores.graph.edges
    assert_close(scores.values, theirs)


@pytest.mark.skipif(not has_auto_circuit(), reason="auto-circuit is not installed")
def test_auto_circuit_agrees() -> None:
    scores = discover(cases.model_of("gpt2"), TASK, "eap")
    theirs = AutoCircuit(cases.fresh_bridge("gpt2"), TASK).values(scores.graph)
    assert_close(scores.values, theirs.double())


FUNCTIONS = (
    attribution.eap,
    attribution.eap_ig,
    attribution.eap_ig_activations,
    attribution.clean_corrupted,
)


def some_token(logits: Tensor) -> Tensor:
    return logits[:, 0, 7]


def read(model: Any, score: Any = some_token, **options: Any) -> tuple[Values, Values]:
    return read_gradients(model, wiring_of(model), TASK.clean, TASK.lengths, score, **options)


def logits_of(model: Any, **options: Any) -> Tensor:
    """The logits of the pass that gradients are taken of."""
    seen: list[Tensor] = []

    def score(logits: Tensor) -> Tensor:
        seen.append(logits.detach())
        return logits.sum((1, 2))

    read(model, score, **options)
    return seen[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_destination_has_one_gradient_in_the_graphs_order(name: str) -> None:
    model = cases.model_of(name)
    wiring = wiring_of(model)
    numbers: list[int] = []
    for destinations, gradient in destination_gradients(model, wiring, *read(model)):
        assert gradient.shape == (destinations.stop - destinations.start, *TASK.clean.shape, 32)
        numbers += range(destinations.start, destinations.stop)
        assert bool(gradient.abs().amax((1, 2, 3)).gt(0).all())
    assert numbers == list(range(wiring.graph.destinations))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi", "shortformer", "grouped_query"])
def test_gradients_against_finite_differences_of_the_stream(name: str) -> None:
    """A step of the whole stream is a step of what all of a layer's destinations read."""
    model = double_model(name)
    wiring = wiring_of(model)
    graph, size = wiring.graph, 5e-4  # models norm in float32 whatever they are in
    gradients = torch.cat(
        [gradient.clone() for _, gradient in destination_gradients(model, wiring, *read(model))]
    )
    step = torch.randn(gradients.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    for layer in range(graph.layers):

        def value(sign: int, layer: int = layer) -> Tensor:
            point = f"blocks.{layer}.hook_resid_pre"
            hooks = [(point, lambda x, hook: x + sign * size * step)]
            return some_token(logits_of(model, hooks=hooks))

        moved = (value(1) - value(-1)) / (2 * size)
        # The step reaches this layer's destinations and all that come later.
        whole = gradients[layer * graph.destinations_per_layer :].sum(0)
        ours = torch.einsum("rpm,rpm->r", whole, step)
        assert cases.relative_error(ours, moved) < 3e-3


def test_the_logits_of_the_pass_are_the_models_own() -> None:
    model = cases.model_of("llama")
    with torch.no_grad():
        whole = model(TASK.clean)
    torch.testing.assert_close(logits_of(model)[:, 0], whole[:, -1], rtol=0, atol=1e-5)
    everywhere = logits_of(model, every_position=True)
    torch.testing.assert_close(everywhere, whole, rtol=0, atol=1e-5)


# ------------------------------------------------------------------ what is left behind


def state(model: Any) -> dict[str, Any]:
    """Hooks, flags, and what is asked of the weights."""
    return {
        "forward": {n: list(p.fwd_hooks) for n, p in model.hook_dict.items()},
        "backward": {n: list(p.bwd_hooks) for n, p in model.hook_dict.items()},
        "flags": {n: v for n, v in vars(model.cfg).items() if n.startswith("use_")},
        "asked": {n: p.requires_grad for n, p in model.named_parameters()},
        "grad": {n: p.grad for n, p in model.named_parameters()},
        "mode": model.training,
        "enabled": torch.is_grad_enabled(),
    }


@pytest.fixture(params=["gpt2", "layernorm"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A model whose first MLP's weights ask for gradients, as a trained one's do."""
    made = cases.model_of(request.param)
    asked = list(made.blocks[0].mlp.parameters())
    for parameter in asked:
        parameter.requires_grad_(True)
    yield made
    for parameter in asked:
        parameter.requires_grad_(False)


@pytest.mark.extended
@pytest.mark.parametrize("method", FUNCTIONS)
def test_the_model_is_left_as_it_was(model: Any, method: Any) -> None:
    experiment = make_experiment(model, TASK)
    before = state(model)
    values = method(experiment)
    assert state(model) == before
    assert any(before["asked"].values())
    assert not values.requires_grad


def test_the_model_is_left_as_it_was_after_an_error(model: Any) -> None:
    before = state(model)

    def fails(logits: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read(model, fails)
    assert state(model) == before


def test_a_callers_own_no_grad_does_not_stop_gradients() -> None:
    model = cases.model_of("llama")
    with torch.no_grad():
        inside = attribution.eap(make_experiment(model, TASK))
    assert float(inside.abs().max()) > 0
    assert torch.equal(inside, attribution.eap(make_experiment(model, TASK)))


# ------------------------------------------------------------------ what is refused


def test_a_gradient_of_nan_is_refused_by_name() -> None:
    with pytest.raises(FloatingPointError, match=r"NaN or infinite gradient at blocks\.0"):
        read(cases.model_of("llama"), lambda logits: (some_token(logits) * 0).sqrt())


def test_logits_of_nan_are_refused() -> None:
    broken = cases.fresh_bridge("gpt2")
    experiment = make_experiment(broken, TASK)
    weight: Any = broken.blocks[1].mlp.out.original_component.weight
    weight.data[:] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN or infinite logits"):
        attribution.eap(experiment)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per")
@pytest.mark.parametrize("method", FUNCTIONS)
def test_quantised_weights_are_refused_in_one_line(method: Any) -> None:
    quantised: Any = torch.ao.quantization.quantize_dynamic(
        cases.fresh_bridge("gpt2"), {torch.nn.Linear}, dtype=torch.qint8
    )
    experiment = make_experiment(quantised, TASK)
    with pytest.raises(UnsupportedModelError, match=r"unembed is quantised \(torch.qint8\)") as e:
        method(experiment)
    assert "\n" not in str(e.value)
