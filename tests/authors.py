"""What the authors' own code puts out on SmolLM2, as oracles (`data/authors_*.json`).

The curves were made with their pipeline in float32 on passages of their data: TV, shared nucleus
and top-1 agreement at their 27 sizes, with every edge outside the trace ablated ("all_masked") and
with attention edges left in place as their released evaluation does ("attention_open"). The random
control is three draws a size: TV in both ways, and edges of attention, residual into mid, residual
into post, MLP, and into the last token.
"""

from __future__ import annotations

import json
from pathlib import Path

DATA = Path(__file__).parent / "data"
AUTHORS_CURVES = json.loads((DATA / "authors_curves.json").read_text())["prompts"]
AUTHORS_RANDOM = json.loads((DATA / "authors_random_control.json").read_text())["rows"]
