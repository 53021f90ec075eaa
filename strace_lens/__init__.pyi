"""The public names of the package, and the modules that define them."""

from .circuits.circuit import Circuit, Scores, circuit_of_edges, circuit_of_nodes
from .circuits.discover.methods import METHODS, discover
from .circuits.evaluate import Faithfulness, faithfulness
from .circuits.exchange import (
    circuit_from_networkx,
    circuit_from_pandas,
    scores_from_pandas,
)
from .circuits.graph import ComponentGraph
from .circuits.metrics import METRICS
from .circuits.run_circuits import run_circuits
from .circuits.task import Task, TaskError
from .circuits.tasks.accuracy import accuracy
from .circuits.tasks.generate import TASKS, make_task
from .circuits.tasks.read import read_task
from .circuits.wiring import component_graph
from .comparison.compare import Comparison, compare
from .corpus.analyses.all import analyse
from .corpus.analyses.claims import claims
from .corpus.cut import cut_to_words
from .corpus.engine import ray_engine
from .corpus.plan import SweepPlan, plan_sweep
from .corpus.prompts import CorpusError, CorpusPrompt
from .corpus.read import read_corpus
from .corpus.run_folder import Run, read_run
from .corpus.setting import Options
from .corpus.sweep import sweep
from .density.along_text import text_density
from .density.causal import phase_ablation, read_ablation
from .density.cost import Plan, plan
from .density.curve import DensityCurve, density_curve, density_curves
from .density.phases import Phases, find_phases
from .density.ways import WAYS, Way, measure_ways, read_ways
from .files.circuits import load_circuit, load_scores, save_circuit, save_scores
from .files.interchange import (
    load_importance_circuit,
    load_importances,
    save_importances,
    write_graph,
)
from .files.traces import load_curve, load_trace, save_curve, save_trace
from .measures.sizes import SIZES
from .model.architecture import UnsupportedModelError
from .model.load import ModelNotFoundError, load_model
from .model.prompts import Prompt, PromptError
from .model.same_model import check_model
from .plot.density import plot_density
from .plot.text_density import text_density_html
from .report.corpus import corpus_report
from .report.explorer import explorer
from .report.summary import summarize
from .report.trace import trace_report
from .traces.ablation import Replacement, replacement
from .traces.estimators import ESTIMATORS, estimate
from .traces.exchange import subgraph_from_networkx, trace_from_pandas
from .traces.extract import extract
from .traces.fisher import fisher
from .traces.graph import TokenGraph, token_graph
from .traces.importance import IMPORTANCES, edge_importance
from .traces.learn import learn
from .traces.prune import prune
from .traces.trace import Subgraph, Trace

__version__: str

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
