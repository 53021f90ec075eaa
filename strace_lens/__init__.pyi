"""The public names of the package, and the modules that define them."""

from .circuits.circuit import Circuit
from .circuits.discover.methods import METHODS, method
from .circuits.discover.run_method import discover
from .circuits.discover.spans import crossing_scores
from .circuits.evaluate import faithfulness
from .circuits.interventions import ablate, activation_patch
from .circuits.path_patching import path_patch
from .circuits.run_circuits import run_circuits
from .circuits.scores import Scores
from .circuits.significance import circuit_tests
from .circuits.task import Task
from .circuits.tasks.accuracy import accuracy
from .circuits.tasks.generate import make_task
from .circuits.tasks.read import read_task, task
from .circuits.wiring import component_graph
from .comparison.compare import compare
from .corpus.analyses.all import analyse
from .corpus.analyses.claims import claims
from .corpus.prompts import CorpusPrompt
from .corpus.read import read_corpus
from .corpus.run_folder import read_run
from .corpus.setting import Options
from .corpus.sweep import sweep
from .density.along_text import text_density
from .density.causal import phase_ablation
from .density.cost import plan
from .density.curve import DensityCurve, density_curve, density_curves
from .density.phases import find_phases
from .density.traced import trace
from .files.results import load, save
from .model.architecture import UnsupportedModelError
from .model.load import load_model
from .model.same_model import check_model
from .plot.density import plot_density
from .plot.heads import plot_heads
from .plot.layer_phases import plot_layer_phases
from .report.explorer import explorer
from .traces.ablation import replacement
from .traces.estimators import ESTIMATORS, estimate
from .traces.extract import extract
from .traces.fisher import fisher
from .traces.graph import TokenGraph, token_graph
from .traces.importance import edge_importance
from .traces.learn import learn
from .traces.prune import prune
from .traces.readout import logit_attribution, readout
from .traces.trace import Trace
from .utils.choices import SIZES

__version__: str

__all__ = [
    "ESTIMATORS",
    "METHODS",
    "SIZES",
    "Circuit",
    "CorpusPrompt",
    "DensityCurve",
    "Options",
    "Scores",
    "Task",
    "TokenGraph",
    "Trace",
    "UnsupportedModelError",
    "__version__",
    "ablate",
    "accuracy",
    "activation_patch",
    "analyse",
    "check_model",
    "circuit_tests",
    "claims",
    "compare",
    "component_graph",
    "crossing_scores",
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
    "load",
    "load_model",
    "logit_attribution",
    "make_task",
    "method",
    "path_patch",
    "phase_ablation",
    "plan",
    "plot_density",
    "plot_heads",
    "plot_layer_phases",
    "prune",
    "read_corpus",
    "read_run",
    "read_task",
    "readout",
    "replacement",
    "run_circuits",
    "save",
    "sweep",
    "task",
    "text_density",
    "token_graph",
    "trace",
]
