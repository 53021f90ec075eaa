"""Checkpoints of a small model in training, swept on the same prompts and laid side by side.

A Llama of four layers is trained here on the help texts of Python, with a tokenizer made from them:
nothing is downloaded. Each checkpoint is saved as transformers saves a model and swept like any
other. Prompts are sentences of the same texts that training never saw.
Run: python -m benchmarks.checkpoints [OUT]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import strace_lens as sl
from benchmarks.common import info, show
from strace_lens.corpus.analyses.all import analyse
from strace_lens.corpus.prompts import CorpusPrompt, cut_to_words, sample
from strace_lens.corpus.run_folder import Run
from strace_lens.corpus.setting import Options
from strace_lens.corpus.sweep import sweep
from strace_lens.report.corpus import corpus_report
from strace_lens.report.tables_corpus import corpus_sections
from strace_lens.utils.disk import write_whole

STEPS = (0, 50, 200, 1000)
PROMPTS, LOW, HIGH = 48, 10, 20
VOCABULARY, LENGTH, ROWS = 2048, 64, 16
SEED = 0


def texts() -> tuple[list[str], list[CorpusPrompt]]:
    """Text to train on, and paragraphs held out of it."""
    blocks = (
        " ".join(block.split()) for name in sorted(topics) for block in topics[name].split("\n\n")
    )
    paragraphs = list(dict.fromkeys(b for b in blocks if len(b.split()) > 30))  # topics repeat some
    held = [CorpusPrompt(text) for text in paragraphs[::10]]
    return [text for i, text in enumerate(paragraphs) if i % 10], held


def tokenizer_of(training: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def checkpoints(
    tokenizer: PreTrainedTokenizerFast, training: list[str], folder: Path
) -> Iterator[tuple[int, Path]]:
    """Train, and save at each of `STEPS`."""
    ids = torch.tensor([i for text in training for i in tokenizer(text).input_ids])
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(SEED)
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            where = folder / f"step-{step:04d}"
            model.save_pretrained(where)
            tokenizer.save_pretrained(where)
            yield step, where
        optimizer.zero_grad()
        _loss(model, ids, draw).backward()
        optimizer.step()


def _loss(model: LlamaForCausalLM, ids: Tensor, draw: torch.Generator) -> Tensor:
    starts = torch.randint(len(ids) - LENGTH, (ROWS,), generator=draw)
    rows = torch.stack([ids[start : start + LENGTH] for start in starts])
    return model(input_ids=rows, labels=rows).loss


def runs_of(out: Path) -> list[Run]:
    """A run for each checkpoint, over the same prompts."""
    training, held = texts()
    tokenizer = tokenizer_of(training)
    cut = cut_to_words(lambda text: len(tokenizer(text).input_ids), held, LOW, HIGH, SEED)
    prompts = sample(cut.prompts, PROMPTS, SEED)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for step, where in checkpoints(tokenizer, training, Path(folder)):
            model = sl.load_model(str(where), device="cpu")
            runs.append(sweep(model, prompts, out / f"step-{step:04d}", Options()))
            found = runs[-1].prompts
            info(
                f"{step} steps: loss of the true token {found['loss'].mean():.2f} nats, entropy "
                f"{found['entropy'].mean():.2f}, density {found['density'].mean():.3f}"
            )
    return runs


def report_of(runs: list[Run], out: Path) -> None:
    tables = analyse(runs)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "phases.html", corpus_report(runs, tables).encode())
    sections = corpus_sections(runs, tables)
    for title in list(sections)[:2] + list(sections)[-1:]:
        info(title)
        show(sections[title])


def main() -> None:
    """Train, sweep and print; keep the runs and the page in a folder if one is named."""
    print("checkpoints of a small Llama on the help texts of Python", flush=True)
    if len(sys.argv) > 1:
        report_of(runs_of(Path(sys.argv[1])), Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        report_of(runs_of(Path(folder)), Path(folder))


if __name__ == "__main__":
    main()
