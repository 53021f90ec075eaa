"""Sweeps on a tiny model: against curves made one by one, stopped, torn, refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import strace_lens as sl
from strace_lens.corpus import batches as batches_module
from strace_lens.corpus.analyses.arrays import every_size
from strace_lens.corpus.analyses.layer_phases import head_and_tail
from strace_lens.corpus.batches import Batch, items_of
from strace_lens.corpus.engine import this_process
from strace_lens.corpus.parts import PartError, Row, part_paths
from strace_lens.corpus.prompts import CorpusPrompt
from strace_lens.corpus.run_folder import Run, read_run
from strace_lens.corpus.setting import Setting
from strace_lens.corpus.sweep import sweep
from strace_lens.measures.sizes import restored_from
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.utils.disk import _host
from strace_lens.utils.manifest import OtherResultsError
from tests import cases, tiny
from tests.corpus.made import SIZES, model, options, prompts, words
from tests.real import smollm2


@pytest.fixture(scope="module", autouse=True)
def two_a_batch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "MOST_PROMPTS", 2)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, sweep(model(), prompts(), folder, options())


def contents(folder: Path) -> list[dict[str, Any]]:
    return [pq.read_table(path).to_pydict() for path in part_paths(folder)]


def same(a: Path, b: Path) -> bool:
    # NaN is no equal of itself, its text is.
    return repr(contents(a)) == repr(contents(b))


def stopping_after(count: int) -> Any:
    """An engine that is interrupted after so many batches."""

    @contextmanager
    def run(threads: int) -> Iterator[Any]:
        with this_process(model())(threads) as workers:

            def measure(
                setting: Setting, left: Sequence[Batch]
            ) -> Iterator[tuple[Batch, list[Row]]]:
                for n, done in enumerate(workers.measure(setting, left)):
                    if n == count:
                        raise KeyboardInterrupt
                    yield done

            yield SimpleNamespace(prepare=workers.prepare, measure=measure)

    return run


@pytest.mark.extended
def test_every_prompt_is_as_its_own_density_curve(whole: tuple[Path, Run]) -> None:
    _, run = whole
    assert run.prompts["prompt"].tolist() == list(range(6))
    assert run.sizes["size"].tolist() == [*run.grid] * 6
    assert len(run.refined) > 6
    for number, one in enumerate(prompts()):
        curve = sl.density_curve(
            model(), sl.extract(sl.token_graph(model(), one.text)), sizes=SIZES
        )
        same_as_curve(run, number, curve)
        counts = every_size(run)[number]["usage"]
        assert [int(used.sum()) for used in counts] == curve.table["edges"].tolist()
        about = run.prompts.iloc[number]
        assert about["text"] == one.text
        assert about["label_kind"] == one.labels["kind"]


def same_as_curve(run: Run, prompt: int, curve: sl.DensityCurve) -> None:
    """Every number of a curve, and of its table, is what the run holds of the prompt."""
    rows = dict(zip(run.prompts["prompt"], every_size(run), strict=True))[prompt]
    numbers = list(curve.table)
    np.testing.assert_allclose(
        rows[numbers].to_numpy(float), curve.table[numbers].to_numpy(float), atol=1e-5
    )
    about = run.prompts.set_index("prompt").loc[prompt]
    for name in ("density", "auc_paper", "entropy", "head_mass"):
        assert about[name] == pytest.approx(getattr(curve, name), abs=1e-5)
    assert about["logit_gap"] == pytest.approx(curve.logit_gap, abs=1e-3)
    assert about["tokens"] == curve.trace.shape.tokens
    assert about["edges"] == curve.trace.edges
    for found, truth in [
        (about["top"], curve.top),
        *zip(rows["top"], curve.tops, strict=True),
    ]:
        assert [pair["token"] for pair in found] == [token for token, _ in truth]
        assert [pair["p"] for pair in found] == pytest.approx([p for _, p in truth], abs=1e-5)


def test_a_sweep_of_smollm2_is_as_its_density_curve(tmp_path: Path) -> None:
    chosen = options(sizes=(0.01, 0.2, 0.6, 1.0), hidden=False, controls="none")
    loaded, text = smollm2(), "The sky is"
    run = sweep(loaded, [CorpusPrompt(text, " blue")], tmp_path / "run", chosen)
    trace = sl.extract(sl.token_graph(loaded, text))
    curve = sl.density_curve(loaded, trace, sizes=chosen.sizes, controls=False)
    same_as_curve(run, 0, curve)
    assert run.prompts["head_mass"][0] >= 0.5  # the head is the smallest nucleus of so much
    found = head_and_tail(run).iloc[0]
    head, tail = restored_from(curve.table, curve.head_mass)
    assert [found["head_size"], found["tail_size"]] == [head, max(head, tail)]


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gemma2"])
def test_the_head_is_that_of_the_model_on_every_kind_of_model(name: str, tmp_path: Path) -> None:
    loaded = tiny.bridge(name)
    run = sweep(loaded, prompts(1), tmp_path / "run", options())
    trace = sl.extract(sl.token_graph(loaded, prompts(1)[0].text))
    same_as_curve(run, 0, sl.density_curve(loaded, trace, sizes=SIZES))


def test_loss_is_of_the_token_that_follows(whole: tuple[Path, Run]) -> None:
    _, run = whole
    tokenizer = tiny.tokenizer()
    for number, one in enumerate(prompts()):
        ids = tokenizer(one.text + (one.next or "")).input_ids
        logits = last_logits(model(), architecture_of(model()), torch.tensor([ids[:-1]]))[0]
        truth = -float(logits.double().log_softmax(-1)[ids[-1]])
        assert run.prompts["loss"][number] == pytest.approx(truth, abs=1e-5)


def test_use_of_components_is_that_of_the_trace(whole: tuple[Path, Run]) -> None:
    _, run = whole
    text = prompts()[3].text
    trace = sl.extract(sl.token_graph(model(), text))
    for place, size in enumerate(SIZES):
        kept = trace.subgraph(size).kept
        for row in run.components.to_dict("records"):
            part = getattr(kept, row["kind"])[row["layer"]]
            edges = part if row["kind"] == "mlp" else part[row["index"]]
            assert run.usage[3, place, row["component"]] == int(edges.sum())
    assert (run.usage.sum(2).ravel() == run.sizes["edges"]).all()
    assert (run.reachable.sum(1) == run.prompts["edges"]).all()


def test_final_states_are_what_the_unembedding_turns_into_the_output(
    whole: tuple[Path, Run],
) -> None:
    _, run = whole
    states = torch.from_numpy(run.final_states)
    assert states.shape == (6, len(SIZES), model().cfg.d_model)
    outputs = model().original_model.lm_head(states).softmax(-1).detach()
    for number, one in enumerate(prompts()):
        tokens = torch.tensor([tiny.tokenizer()(one.text).input_ids])
        full = last_logits(model(), architecture_of(model()), tokens)[0].softmax(-1)
        tv = (outputs[number] - full).abs().sum(-1) / 2
        found = run.sizes.loc[run.sizes["prompt"] == number, "tv"].tolist()
        assert tv.tolist() == pytest.approx(found, abs=1e-5)


def test_without_hidden_states_none_are_kept(tmp_path: Path) -> None:
    run = sweep(model(), prompts(1), tmp_path / "run", options(hidden=False))
    assert run.final_states.shape == (1, len(SIZES), 0)
    assert run.geometry["cosine"].shape == (1, len(SIZES), 0)


def test_shallow_statistics_are_those_of_the_prompts(whole: tuple[Path, Run]) -> None:
    _, run = whole
    ids = [i for one in prompts() for i in tiny.tokenizer()(one.text).input_ids]
    unigram = torch.bincount(torch.tensor(ids), minlength=model().cfg.d_vocab) / len(ids)
    bos = torch.tensor([[tiny.tokenizer().bos_token_id]])
    alone = last_logits(model(), architecture_of(model()), bos)[0].softmax(-1)
    for number, one in enumerate(prompts()):
        tokens = torch.tensor([tiny.tokenizer()(one.text).input_ids])
        full = last_logits(model(), architecture_of(model()), tokens)[0].softmax(-1)
        for name, target in (("unigram_tv", unigram), ("no_context_tv", alone)):
            truth = float((full - target).abs().sum()) / 2
            assert run.prompts[name][number] == pytest.approx(truth, abs=1e-5)
            last = run.sizes[(run.sizes["prompt"] == number) & (run.sizes["size"] == 1)]
            assert last[name].iloc[0] == pytest.approx(truth, abs=1e-4)


@pytest.mark.extended
def test_an_interrupted_sweep_goes_on_to_the_same_parts(
    whole: tuple[Path, Run], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep(model(), prompts(), folder, options(), engine=stopping_after(1))
    assert len(part_paths(folder)) == 1
    assert len(read_run(folder).prompts) == 2
    done = part_paths(folder)[0].stat().st_mtime_ns
    told: list[tuple[int, int, str]] = []
    sweep(model(), prompts(), folder, options(), progress=lambda *a: told.append(a))
    assert told == [(done, 6, "prompts") for done in (2, 4, 6)]
    assert part_paths(folder)[0].stat().st_mtime_ns == done
    assert same(folder, whole[0])
    assert (folder / "manifest.json").read_bytes() == (whole[0] / "manifest.json").read_bytes()


@pytest.mark.extended
def test_a_killed_sweep_goes_on_to_the_same_parts(whole: tuple[Path, Run], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = multiprocessing.get_context("fork").Process(
        target=sweep, args=(model(), prompts(), folder, options())
    )
    child.start()
    while child.is_alive() and not (folder / "parts" / "part-00000.parquet").exists():
        time.sleep(0.001)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    stray = f".strace-lens-{_host()}-{child.pid}-00000000.tmp"
    (folder / "parts" / stray).write_bytes(b"half")  # as a kill may leave it
    assert child.exitcode in (-signal.SIGKILL, 0)
    sweep(model(), prompts(), folder, options())
    assert same(folder, whole[0])
    assert not list((folder / "parts").glob(".*"))


@pytest.mark.extended
@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_torn_part_is_done_again(keep: int, whole: tuple[Path, Run], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sweep(model(), prompts(), folder, options())
    torn = part_paths(folder)[1]
    torn.write_bytes(torn.read_bytes()[:keep])
    with pytest.raises(PartError, match=r"part-00001.parquet is damaged .*; run the sweep again"):
        read_run(folder)
    sweep(model(), prompts(), folder, options())
    assert same(folder, whole[0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"estimator": "scheduled"}, r"estimator was 'greedy' and is 'scheduled'"),
        ({"seed": 3}, r"seed was 0 and is 3"),
        ({"sizes": (0.1, 1.0)}, r"sizes was \[0.001,"),
    ],
)
def test_other_options_are_refused_by_name(
    changed: dict[str, Any], said: str, whole: tuple[Path, Run]
) -> None:
    with pytest.raises(OtherResultsError, match=said):
        sweep(model(), prompts(), whole[0], options(**changed))


def test_other_prompts_and_other_models_are_refused(whole: tuple[Path, Run]) -> None:
    said = r"holds another run: of its 6 prompts 1 are not given; name another"
    with pytest.raises(OtherResultsError, match=said):
        sweep(model(), prompts(5), whole[0], options())
    new = [*prompts()[:4], CorpusPrompt(words(9)), prompts()[4]]
    said = rf"of its 6 prompts 1 are not given, and 1 that are given .* such as '{words(9)[:20]}"
    with pytest.raises(OtherResultsError, match=said):
        sweep(model(), new, whole[0], options())
    with pytest.raises(OtherResultsError, match=r"model was .* and is"):
        sweep(tiny.bridge("gpt2"), prompts(), whole[0], options())


def scaled(factor: float) -> Any:
    """A model of the same name, all of whose matrices are scaled."""
    loaded = cases.fresh_bridge("llama")
    with torch.no_grad():
        for weight in loaded.parameters():
            if weight.ndim > 1:
                weight.mul_(factor)
    return loaded


@pytest.mark.extended
def test_other_weights_of_the_same_name_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sweep(scaled(1.0), prompts(), folder, options())
    part_paths(folder)[1].unlink()
    said = r"the model has the same name and other weights \(their SHA-256 was"
    with pytest.raises(OtherResultsError, match=said):
        sweep(scaled(0.9), prompts(), folder, options())
    assert len(part_paths(folder)) == 2
    sweep(scaled(1.0), prompts(), folder, options())
    assert len(part_paths(folder)) == 3


@pytest.mark.extended
def test_the_order_of_the_prompts_is_no_difference(whole: tuple[Path, Run], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep(model(), prompts(), folder, options(), engine=stopping_after(1))
    shuffled = [prompts()[i] for i in (3, 0, 5, 1, 4, 2)]
    run = sweep(model(), shuffled, folder, options())
    assert same(folder, whole[0])
    assert run.prompts["text"].tolist() == [p.text for p in prompts()]


def test_prompts_that_are_given_twice_are_counted(tmp_path: Path) -> None:
    folder, twice = tmp_path / "run", [*prompts(2), prompts(1)[0]]
    assert len(sweep(model(), twice, folder, options()).prompts) == 3
    assert len(sweep(model(), twice[::-1], folder, options()).prompts) == 3
    with pytest.raises(OtherResultsError, match="of its 3 prompts 1 are not given"):
        sweep(model(), twice[:2], folder, options())


def test_labels_that_generating_adds_are_not_overwritten(tmp_path: Path) -> None:
    given = [CorpusPrompt(words(4), None, {"step": 9})]
    with pytest.raises(ValueError, match="generating tokens adds a label 'step'; rename"):
        sweep(model(), given, tmp_path / "run", options(generate=1))
    assert sweep(model(), given, tmp_path / "run", options()).prompts["label_step"][0] == "9"


@pytest.mark.extended
def test_parts_of_two_models_in_one_folder_are_an_error(
    whole: tuple[Path, Run], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    sweep(model(), prompts(), folder, options(seed=1))
    foreign = part_paths(whole[0])[0]
    part_paths(folder)[0].write_bytes(foreign.read_bytes())
    with pytest.raises(PartError, match="is of another run"):
        read_run(folder)
    with pytest.raises(PartError, match="is of another run"):
        sweep(model(), prompts(), folder, options(seed=1))


def test_a_prompt_that_cannot_be_traced_is_recorded(tmp_path: Path) -> None:
    given = [*prompts(2), CorpusPrompt(words(1)), CorpusPrompt(words(70))]
    run = sweep(model(), given, tmp_path / "run", options())
    assert run.failures["prompt"].tolist() == [2, 3]
    assert "a trace needs at least two" in run.failures["error"][0]
    assert "reads at most 64" in run.failures["error"][1]
    assert run.prompts["prompt"].tolist() == [0, 1]


@pytest.mark.extended
def test_a_prompt_that_fails_alone_does_not_take_its_batch_along(
    whole: tuple[Path, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = __import__("strace_lens.corpus.measure", fromlist=["token_graph"])
    real = measure.token_graph

    def fails(model: Any, prompt: Any) -> Any:
        if prompt.text == prompts()[4].text:
            raise FloatingPointError("the model gave NaN\nor infinite logits")
        return real(model, prompt)

    monkeypatch.setattr(measure, "token_graph", fails)
    run = sweep(model(), prompts(), tmp_path / "run", options())
    assert run.failures["prompt"].tolist() == [4]
    assert run.failures["error"][0] == ("FloatingPointError: the model gave NaN or infinite logits")
    others = [n for n in range(6) if n != 4]
    assert run.prompts["prompt"].tolist() == others
    np.testing.assert_allclose(
        run.prompts["density"], whole[1].prompts["density"][others], atol=1e-6
    )


def test_a_run_without_any_measured_prompt_says_so(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"measured: the first says .*a trace needs at least"):
        sweep(model(), [CorpusPrompt(words(1))], tmp_path / "run", options())


@pytest.mark.extended
def test_generation_grows_every_prompt_by_the_model_s_own_tokens(tmp_path: Path) -> None:
    run = sweep(model(), prompts(2), tmp_path / "run", options(generate=2))
    assert run.prompts["label_of"].tolist() == ["0"] * 3 + ["1"] * 3
    assert run.prompts["label_step"].tolist() == ["0", "1", "2"] * 2
    start = len(tiny.tokenizer()(prompts()[0].text).input_ids)
    assert run.prompts["tokens"].tolist()[:3] == [start, start + 1, start + 2]
    ids = tiny.tokenizer()(prompts()[0].text).input_ids
    for step in range(2):
        logits = last_logits(model(), architecture_of(model()), torch.tensor([ids]))[0]
        ids = [*ids, int(logits.argmax())]
        assert run.prompts["next"][step] == f" {tiny.tokenizer().decode([ids[-1]])}"
        assert run.prompts["text"][step + 1] == tiny.tokenizer().decode(ids)
        assert run.prompts["loss"][step] == pytest.approx(
            -float(logits.log_softmax(-1).max()), abs=1e-5
        )
    assert run.prompts["next"].isna().tolist() == [False, False, True] * 2


def test_sampled_text_depends_on_its_prompt_and_the_seed_alone() -> None:
    def texts(given: Sequence[CorpusPrompt], **changed: Any) -> dict[str, list[str]]:
        sampled = {"generate": 3, "temperature": 1.5, "top_p": 0.9}
        chosen = options(**{**sampled, **changed})
        items = items_of(model(), architecture_of(model()), given, chosen)
        grown = [items[i : i + 4] for i in range(0, len(items), 4)]
        return {own[0].text: [one.text for one in own[1:]] for own in grown}

    whole = texts(prompts(3))
    assert texts(prompts(3)[::-1]) == whole
    assert texts(prompts(3)[1:2]).items() <= whole.items()
    assert texts(prompts(3), seed=1) != whole
    greedy = texts(prompts(3), temperature=0.0, top_p=1.0)
    assert greedy != whole
    assert texts(prompts(3), temperature=1e-12, top_p=1.0) == greedy


@pytest.mark.extended
def test_another_temperature_is_another_run(tmp_path: Path) -> None:
    chosen = options(generate=1, temperature=1.5, hidden=False, controls="none")
    sweep(model(), prompts(2), tmp_path / "run", chosen)
    with pytest.raises(OtherResultsError, match=r"temperature was 1.5 and is 1.0"):
        sweep(model(), prompts(2), tmp_path / "run", replace(chosen, temperature=1.0))


@pytest.mark.extended
def test_other_estimators_and_ablations(tmp_path: Path) -> None:
    chosen = options(estimator="scheduled", ablation="mean", controls="none", hidden=False)
    run = sweep(model(), prompts(1), tmp_path / "run", chosen)
    trace = sl.estimate(model(), sl.token_graph(model(), prompts()[0].text), "scheduled")
    swap = sl.replacement(model(), trace.prompt, "mean")
    curve = sl.density_curve(model(), trace, sizes=SIZES, replacement=swap, controls=False)
    (every,) = every_size(run)
    np.testing.assert_allclose(every["tv"], curve.table["tv"], atol=1e-5)
    assert every["refined"].tolist() == curve.table["refined"].tolist()
    assert every["random_tv"].isna().all()
    assert run.geometry["cosine"].size == run.path["velocity"].size == 0


def test_an_empty_corpus_and_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompts to sweep"):
        sweep(model(), [], tmp_path / "run", options())
    with pytest.raises(ValueError, match="a sweep has no ablation 'resample'; choose from zero"):
        options(ablation="resample")
    with pytest.raises(ValueError, match="threads must be at least 1; got 0"):
        replace(options(), threads=0)
    assert not (tmp_path / "run").exists()


def test_the_manifest_says_how_the_run_was_made(whole: tuple[Path, Run]) -> None:
    manifest = json.loads((whole[0] / "manifest.json").read_text())
    assert manifest["options"]["estimator"] == "greedy"
    assert manifest["given"] == 6
    assert manifest["batches"] == len(part_paths(whole[0])) == 3
    assert set(pd.read_parquet(part_paths(whole[0])[0])["prompt"]) <= set(range(6))
