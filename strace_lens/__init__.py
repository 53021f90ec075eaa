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

run = sl.sweep(model, sl.read_corpus("builtin"), "runs/builtin")
sl.analyse([run])
"""

from strace_lens.utils import interrupt as _before_all_that_takes_long  # noqa: F401

# isort: split

import lazy_loader

from strace_lens.utils.versions import VERSION as __version__  # noqa: F401

# A public name imports its module when it is first used; `__init__.pyi` says which module that is.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
