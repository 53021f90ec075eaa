"""What was measured of each prompt on its own, in one row: the numbers that all means are of."""

from __future__ import annotations

import pandas as pd

from strace_lens.corpus.analyses.needed import needed_by_prompt
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.refinement import THRESHOLD

_GIVEN = (
    *("prompt", "sha256", "tokens", "edges"),
    *("density", "auc_paper", "entropy", "head_mass", "loss"),
)
_SIZES = {
    "top1_size": "top1 nan stable",
    "top1_first": "top1 nan first",
    "nucleus_size": "nucleus 0.5 stable",
    "nucleus_first": "nucleus 0.5 first",
    "head_size": f"head_share {THRESHOLD:g} stable",
    "tail_size": f"tail_share {THRESHOLD:g} stable",
}
"""Columns, by what is asked for, at which level and by which rule."""


def per_prompt(run: Run) -> pd.DataFrame:
    """The scalars of each prompt, and the relative sizes that it needs.

    Returns:
        A row a prompt: `prompt`, `sha256` (of its text), `tokens`, `edges`, `density`, `auc_paper`,
        `entropy`, `head_mass`, `loss` as in `Run.prompts`; and the smallest sizes from which on the
        top token is the full model's (`top1_size`), the nucleus is shared up to p = 0.5
        (`nucleus_size`), and the errors of head and tail stay under `phases.THRESHOLD` of their
        mass (`head_size`, `tail_size`); and the first sizes at which the top token is the full
        model's (`top1_first`) and the nucleus is shared (`nucleus_first`), which may be lost again.
        A size that is not reached is NaN.
    """
    needed = {f"{x.what} {x.level:g} {x.rule}": x.sizes for x in needed_by_prompt(run)}
    table = run.prompts[list(_GIVEN)].reset_index(drop=True)
    return table.assign(**{column: needed[asked] for column, asked in _SIZES.items()})
