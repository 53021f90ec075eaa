"""strace_lens: how much of a language model does a prediction really use?

import strace_lens as sl

model = sl.load_model()
graph = sl.token_graph(model, "The capital of France is")
trace = sl.extract(graph, importance="l1")
curve = sl.density_curve(model, trace)
sl.find_phases(curve)

task = sl.make_task(model, "ioi")
scores = sl.discover(model, task, method="eap-ig")
sl.faithfulness(model, task, scores)

run = sl.sweep(model, sl.read_corpus("carried"), "runs/carried")
sl.analyse([run])
"""

from strace_lens.utils import interrupt as _before_all_that_takes_long  # noqa: F401

# isort: split

from strace_lens.compare.compare import Comparison, compare
from strace_lens.component_graph.circuit import Circuit, Scores, circuit_of_edges, circuit_of_nodes
from strace_lens.component_graph.discover.methods import METHODS, discover
from strace_lens.component_graph.evaluate import Faithfulness, faithfulness
from strace_lens.component_graph.exchange import (
    circuit_from_networkx,
    circuit_from_pandas,
    scores_from_pandas,
)
from strace_lens.component_graph.graph import ComponentGraph
from strace_lens.component_graph.metrics import METRICS
from strace_lens.component_graph.run_circuits import run_circuits
from strace_lens.component_graph.task import Task, TaskError
from strace_lens.component_graph.tasks.accuracy import accuracy
from strace_lens.component_graph.tasks.generate import TASKS, make_task
from strace_lens.component_graph.tasks.read import read_task
from strace_lens.component_graph.wiring import component_graph
from strace_lens.corpus.analyses.all import analyse
from strace_lens.corpus.analyses.claims import claims
from strace_lens.corpus.cut import cut_to_words
from strace_lens.corpus.engine import ray_engine
from strace_lens.corpus.plan import SweepPlan, plan_sweep
from strace_lens.corpus.prompts import CorpusError, CorpusPrompt
from strace_lens.corpus.read import read_corpus
from strace_lens.corpus.run_folder import Run, read_run
from strace_lens.corpus.setting import Options
from strace_lens.corpus.sweep import sweep
from strace_lens.density.along_text import text_density
from strace_lens.density.causal import phase_ablation, read_ablation
from strace_lens.density.cost import Plan, plan
from strace_lens.density.curve import DensityCurve, density_curve, density_curves
from strace_lens.density.phases import Phases, find_phases
from strace_lens.density.ways import WAYS, Way, measure_ways, read_ways
from strace_lens.files.circuits import load_circuit, load_scores, save_circuit, save_scores
from strace_lens.files.interchange import (
    load_importance_circuit,
    load_importances,
    save_importances,
    write_graph,
)
from strace_lens.files.traces import load_curve, load_trace, save_curve, save_trace
from strace_lens.measures.sizes import SIZES
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.load import ModelNotFoundError, load_model
from strace_lens.model.prompts import Prompt, PromptError
from strace_lens.model.same_model import check_model
from strace_lens.plot.density import plot_density
from strace_lens.plot.text_density import text_density_html
from strace_lens.report.corpus import corpus_report
from strace_lens.report.explorer import explorer
from strace_lens.report.summary import summarize
from strace_lens.report.trace import trace_report
from strace_lens.token_graph.ablation import Replacement, replacement
from strace_lens.token_graph.estimators import ESTIMATORS, estimate
from strace_lens.token_graph.exchange import subgraph_from_networkx, trace_from_pandas
from strace_lens.token_graph.extract import extract
from strace_lens.token_graph.fisher import fisher
from strace_lens.token_graph.graph import TokenGraph, token_graph
from strace_lens.token_graph.importance import IMPORTANCES, edge_importance
from strace_lens.token_graph.learn import learn
from strace_lens.token_graph.prune import prune
from strace_lens.token_graph.trace import Subgraph, Trace
from strace_lens.utils.versions import VERSION as __version__

__all__ = [
    "ESTIMATORS",
    "IMPORTANCES",
    "METHODS",
    "METRICS",
    "SIZES",
    "TASKS",
    "WAYS",
    "Circuit",
    "Comparison",
    "ComponentGraph",
    "CorpusError",
    "CorpusPrompt",
    "DensityCurve",
    "Faithfulness",
    "ModelNotFoundError",
    "Options",
    "Phases",
    "Plan",
    "Prompt",
    "PromptError",
    "Replacement",
    "Run",
    "Scores",
    "Subgraph",
    "SweepPlan",
    "Task",
    "TaskError",
    "TokenGraph",
    "Trace",
    "UnsupportedModelError",
    "Way",
    "__version__",
    "accuracy",
    "analyse",
    "check_model",
    "circuit_from_networkx",
    "circuit_from_pandas",
    "circuit_of_edges",
    "circuit_of_nodes",
    "claims",
    "compare",
    "component_graph",
    "corpus_report",
    "cut_to_words",
    "density_curve",
    "density_curves",
    "discover",
    "edge_importance",
    "estimate",
    "explorer",
    "extract",
    "faithfulness",
    "find_phases",
    "fisher",
    "learn",
    "load_circuit",
    "load_curve",
    "load_importance_circuit",
    "load_importances",
    "load_model",
    "load_scores",
    "load_trace",
    "make_task",
    "measure_ways",
    "phase_ablation",
    "plan",
    "plan_sweep",
    "plot_density",
    "prune",
    "ray_engine",
    "read_ablation",
    "read_corpus",
    "read_run",
    "read_task",
    "read_ways",
    "replacement",
    "run_circuits",
    "save_circuit",
    "save_curve",
    "save_importances",
    "save_scores",
    "save_trace",
    "scores_from_pandas",
    "subgraph_from_networkx",
    "summarize",
    "sweep",
    "text_density",
    "text_density_html",
    "token_graph",
    "trace_from_pandas",
    "trace_report",
    "write_graph",
]
