"""Imports go down only, and what plans imports nothing heavy."""

import ast
import subprocess
import sys

LAYERS = [  # a file may import from its own row and the rows above it
    {"errors", "registry", "strict_yaml", "config", "study", "slurm", "lease", "runs", "forecast", "watch", "__init__"},
    {"data", "views", "backbones", "distributed", "weights", "onnx"},
    {"objectives", "auxiliary"},
    {"engine"},
    {"evaluate", "report"},
    {"bench", "tracking", "driver", "stages", "export", "fit", "measure", "cli", "__main__"},
]
LAZY = {"config", "study"}  # they read registers, whose __init__ files import nothing heavy


def shelf(path, root):
    return path.relative_to(root).parts[0].removesuffix(".py")


def imported(tree):
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith("sandglass."))


def test_imports_go_down_only(repo):
    root = repo / "src" / "sandglass"
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for file in sorted(root.rglob("*.py")):
        here = shelf(file, root)
        assert here in rank, f"{here} has no layer"
        for there in imported(ast.parse(file.read_text())):
            if here not in LAZY and rank[there] > rank[here]:
                wrong.append(f"{file.relative_to(root)} imports {there}")
    assert not wrong, wrong


def test_only_evaluation_opens_the_test_split(repo):
    root = repo / "src" / "sandglass"
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and any(k.arg == "evaluating" for k in node.keywords):
                assert shelf(file, root) == "evaluate", file


def test_the_command_line_starts_without_heavy_imports():
    heavy = "{'torch', 'numpy', 'pandas', 'mlflow', 'timm', 'lightly', 'matplotlib'}"
    code = f"import sys, sandglass.cli; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_in_under_half_a_second():
    import resource

    def spent() -> float:  # CPU seconds: the turns of a neighbour do not count
        use = resource.getrusage(resource.RUSAGE_CHILDREN)
        return use.ru_utime + use.ru_stime

    times = []
    for _ in range(3):
        began = spent()
        subprocess.run([sys.executable, "-m", "sandglass", "--help"], check=True, capture_output=True)
        times.append(spent() - began)
    assert min(times) < 0.5, times


def test_files_stay_short(repo):
    long = {f.name: n for f in (repo / "src").rglob("*.py") if (n := len(f.read_text().splitlines())) > 500}
    assert not long, long


def test_a_job_starts_without_pytorchs_compiler_and_whoever_compiles_has_it():
    code = """
import importlib, pkgutil, sys
import sandglass
for module in pkgutil.walk_packages(sandglass.__path__, "sandglass."):
    if module.name.split(".")[1] not in ("__main__", "bench", "tracking"):  # the command; lightly and MLflow: in no job
        importlib.import_module(module.name)
import torch
from sandglass.engine import optim
for name in ("adamw", "adam", "sgd", "lars"):
    weights = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optim.build([{"params": [weights], "weight_decay": 0.1}], name, 0.1, 0.9)
    optimizer.zero_grad()
    weights.sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
assert not {"torch._dynamo", "torch._inductor", "sympy", "triton"} & set(sys.modules)
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
assert torch.compiler.disable(lambda x: x + 1)(1) == 2 and "torch._dynamo" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
