"""Attribution against slow derivatives in each edge's share, and against TransformerLens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from benchmarks.circuits_peers import (
    AutoCircuit,
    has_auto_circuit,
    scores_edges,
    transformer_lens_scores,
)
from strace_lens.component_graph.discover import attribution
from strace_lens.component_graph.discover.methods import discover
from strace_lens.component_graph.experiment import make_experiment
from strace_lens.component_graph.run_circuits import circuit_metric
from strace_lens.ground_truth.linear import exact_effects, linear_task, linear_weights
from strace_lens.ground_truth.weights import model_of
from tests import cases, oracle
from tests.component_graph.discover.oracle_attribution import (
    difference_of,
    embeddings,
    group_scores,
    plain_scores,
    prompts_of,
    scores_at,
    share_derivatives,
)
from tests.component_graph.made import (
    NAMES,
    double_experiment,
    plain_graph,
    tiny_task,
    uneven_task,
)
from tests.component_graph.oracle_patching import full_run

TASK = tiny_task(2, 6)
METHODS = ("attribution-patching", "eap", "eap-ig", "eap-ig-activations", "clean-corrupted")


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


@pytest.mark.parametrize("method", METHODS)
def test_chunks_change_nothing(method: str) -> None:
    task, model = tiny_task(3, 3), cases.model_of("mistral")
    whole = discover(model, task, method)
    cut = discover(model, task, method, memory_budget=1)
    assert_close(cut.values, whole.values.double())
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


@pytest.mark.parametrize("name", ["mistral", "gemma2", "phi", "attention_only"])
def test_eap_ig_over_activations_against_shares(name: str) -> None:
    values = attribution.eap_ig_activations(double_experiment(name, TASK), steps=2)
    assert_close(values, group_scores(name, TASK, steps=2))


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


@pytest.mark.parametrize(
    "method",
    [
        attribution.eap,
        attribution.eap_ig,
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


@pytest.mark.parametrize("method", ["eap-ig", "eap-ig-kl", "eap-ig-activations"])
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
    "eap-ig": (2 + 5, 5),
    "eap-ig-kl": (2 + 5, 5),
    "clean-corrupted": (4, 2),
    "eap-ig-activations": (2 + 5 * 5, 5 * 5),
}


@pytest.mark.parametrize("method", PASSES)
def test_passes_are_counted(method: str) -> None:
    scores = discover(cases.model_of("mistral"), TASK, method)
    assert (scores.forwards, scores.backwards) == PASSES[method]


def test_passes_of_zero_ablation_and_of_other_steps() -> None:
    model = cases.model_of("mistral")
    scores = discover(model, TASK, "eap-ig", steps=2)
    assert (scores.forwards, scores.backwards) == (4, 2)
    assert scores.made["steps"] == 2
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
