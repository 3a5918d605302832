"""Run one of optax's own common test suites on our optimizers; prints one JSON object.

The suites ship inside optax's wheel. Their rows are fixed by decorators when the module is
imported, so the source is parsed, its table of optimizers replaced by ours, and executed as a
module of its own. Nothing of it is copied.

Three edits besides the rows, each a fact about the suite and not about us: imports of scikit-learn
serve tests that are not run; version checks that compare strings (so that jax 0.12 counts as older
than 0.7) are made true; and only the tests that are parametrised over optimizers are run.
"""

import ast
import importlib.util
import json
import os
import sys
import types
import unittest
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import optax.contrib
import stam_jax
from optax._src import alias

OPTIMIZERS = {"stam": stam_jax.stam, "stam_lite": stam_jax.stam_lite}
# The decay of optax's own adamw row: the suite asks for minima that a stronger decay moves.
RATE = {"learning_rate": 1e-2, "weight_decay": 1e-4}
ROWS = [{"opt_name": name, "opt_kwargs": RATE} for name in OPTIMIZERS]
WRAPPED_ROWS = [{**row, "wrapper_name": None, "wrapper_kwargs": None} for row in ROWS]

# suite -> module, class, and the tables to replace
SUITES = {
    "alias": ("optax._src.alias_test", "AliasTest", {"_OPTIMIZERS_UNDER_TEST": tuple(ROWS)}),
    "contrib": (
        "optax.contrib._common_test",
        "ContribTest",
        {"_MAIN_OPTIMIZERS_UNDER_TEST": WRAPPED_ROWS, "_OTHER_OPTIMIZERS_UNDER_TEST": []},
    ),
    "sharding": (
        "optax._src.sharding_test",
        "ShardingTest",
        {"OPTIMIZERS": {name: make(**RATE) for name, make in OPTIMIZERS.items()}},
    ),
    "float64": (
        "optax._src.float64_test",
        "Float64Test",
        {"ALL_MODULES": [(name, make, RATE) for name, make in OPTIMIZERS.items()]},
    ),
}


class Rewrite(ast.NodeTransformer):
    """Replace the tables, drop scikit-learn, make string comparisons of versions true."""

    def __init__(self, tables):
        self.tables = set(tables)
        self.replaced = set()

    def visit_ImportFrom(self, node):
        return None if (node.module or "").startswith("sklearn") else node

    def visit_Assign(self, node):
        self.generic_visit(node)
        name = getattr(node.targets[0], "id", None)
        if name in self.tables - self.replaced:
            self.replaced.add(name)
            node.value = ast.parse(f"__rows__[{name!r}]", mode="eval").body
        return node

    def visit_AugAssign(self, node):
        return None if getattr(node.target, "id", None) in self.tables else node

    def visit_Compare(self, node):
        self.generic_visit(node)
        if "__version__" in ast.unparse(node.left) and isinstance(node.ops[0], ast.Lt):
            return ast.copy_location(ast.Constant(value=False), node)
        return node


def parametrised_tests(tree, class_name, tables):
    """Return the names of the class's tests that are decorated with one of the tables."""
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name).body
    related = {*tables, "_ALL_OPTIMIZERS_UNDER_TEST"}
    return tuple(
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test")
        and any(name in ast.unparse(d) for d in node.decorator_list for name in related)
    )


def load(suite):
    """Return the rewritten test class and the names of its tests over optimizers."""
    module_name, class_name, tables = SUITES[suite]
    spec = importlib.util.find_spec(module_name)
    path = Path(spec.origin)
    tree = ast.parse(path.read_text())
    names = parametrised_tests(tree, class_name, tables)
    rewrite = Rewrite(tables)
    tree = ast.fix_missing_locations(rewrite.visit(tree))
    if rewrite.replaced != set(tables):
        msg = f"{module_name} has no table {sorted(set(tables) - rewrite.replaced)}"
        raise LookupError(msg)
    module = types.ModuleType("optax_suite")
    module.__dict__.update(__rows__=tables, __file__=str(path))
    sys.modules["optax_suite"] = module
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return getattr(module, class_name), names


def main(suite):
    """Run one suite and print what happened."""
    for name, make in OPTIMIZERS.items():
        setattr(alias, name, make)
        setattr(optax.contrib, name, make)
    test_class, names = load(suite)
    # absl appends a number or a row's name to each parametrised method.
    found = unittest.defaultTestLoader.getTestCaseNames(test_class)
    chosen = unittest.TestSuite(test_class(name) for name in found if name.startswith(names))
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=1).run(chosen)
    report = {
        "run": result.testsRun,
        "tests": len(names),
        "failed": [str(case) for case, _ in result.failures + result.errors],
        "skipped": [f"{case}: {why}" for case, why in result.skipped],
    }
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
