"""strace_lens: how much of a language model does a prediction really use?

import strace_lens as sl

model = sl.load_model()
graph = sl.token_graph(model, "The capital of France is")
trace = sl.extract(graph, importance="l1")
curve = sl.density_curve(model, trace)
curve.phases()
"""

from strace_lens.ablation import Replacement, replacement
from strace_lens.architecture import UnsupportedModelError
from strace_lens.causal import phase_ablation
from strace_lens.cost import Plan, plan
from strace_lens.density import DensityCurve, density_curve, density_curves
from strace_lens.models import ModelNotFoundError, load_model
from strace_lens.phases import Phases, find_phases
from strace_lens.prompts import Prompt, PromptError
from strace_lens.report import trace_report
from strace_lens.sizes import ESTIMATOR_SIZES, SIZES
from strace_lens.storage import load_curve, load_trace, save_curve, save_trace
from strace_lens.summary import summarize
from strace_lens.token_graph.estimators import ESTIMATORS, estimate
from strace_lens.token_graph.extract import extract
from strace_lens.token_graph.fisher import fisher
from strace_lens.token_graph.graph import TokenGraph, token_graph
from strace_lens.token_graph.importance import IMPORTANCES, edge_importance
from strace_lens.token_graph.learn import learn
from strace_lens.token_graph.prune import prune
from strace_lens.token_graph.trace import Subgraph, Trace
from strace_lens.trials.prompts import TrialPrompt, read_prompts
from strace_lens.trials.run import Trials, run_trials
from strace_lens.trials.table import estimator_table

__all__ = [
    "ESTIMATORS",
    "ESTIMATOR_SIZES",
    "IMPORTANCES",
    "SIZES",
    "DensityCurve",
    "ModelNotFoundError",
    "Phases",
    "Plan",
    "Prompt",
    "PromptError",
    "Replacement",
    "Subgraph",
    "TokenGraph",
    "Trace",
    "TrialPrompt",
    "Trials",
    "UnsupportedModelError",
    "density_curve",
    "density_curves",
    "edge_importance",
    "estimate",
    "estimator_table",
    "extract",
    "find_phases",
    "fisher",
    "learn",
    "load_curve",
    "load_model",
    "load_trace",
    "phase_ablation",
    "plan",
    "prune",
    "read_prompts",
    "replacement",
    "run_trials",
    "save_curve",
    "save_trace",
    "summarize",
    "token_graph",
    "trace_report",
]
