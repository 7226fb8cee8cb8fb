"""The public surface: complete, sorted, light to import."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import rarvision
from rarvision import errors

HEAVY = ("torch", "transformers", "faiss", "scipy", "sklearn", "matplotlib", "torchvision")


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)


def sort_key(name):  # constants, classes, functions, as the linter sorts __all__
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_all_is_sorted_and_every_name_resolves():
    assert rarvision.__all__ == sorted(set(rarvision.__all__), key=sort_key)
    for name in rarvision.__all__:
        assert getattr(rarvision, name).__module__.startswith("rarvision.")
    assert set(rarvision.__all__) <= set(dir(rarvision))


def test_type_checkers_and_run_time_see_the_same_names():
    tree = ast.parse(Path(rarvision.__file__).read_text())
    checked = {
        alias.name: node.module.removeprefix("rarvision.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert checked == rarvision._HOME
    assert set(checked) == set(rarvision.__all__)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Recogniser'"):
        rarvision.Recogniser  # noqa: B018 - the access is the test


@pytest.mark.parametrize(
    "first", ["import rarvision.evaluate", "from rarvision.evaluate import Report", "rarvision.Report", "pass"]
)
def test_evaluate_is_the_function_whatever_was_imported_first(first):
    code = f"import rarvision\n{first}\nassert type(rarvision.evaluate).__name__ == 'function', rarvision.evaluate"
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_importing_loads_nothing_heavy():
    code = f"import sys, rarvision; print([m for m in {(*HEAVY, 'numpy', 'PIL')} if m in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"


def test_help_loads_nothing_heavy():
    heavy = (*HEAVY, "numpy", "PIL", "rich")
    code = (
        "import sys\nfrom rarvision.cli import main\nsys.argv = ['rarvision', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert run_python(code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("code", "aimed_at_s"),
    [
        ("import rarvision", 0.15),
        ("import sys; sys.argv = ['rarvision', '--help']\nfrom rarvision.cli import main\nmain()", 0.5),
    ],
    ids=["import", "help"],
)
def test_starting_is_fast(code, aimed_at_s):
    bare, best = (min(seconds) for seconds in zip(*((_seconds("pass"), _seconds(code)) for _ in range(5)), strict=True))
    # A bare interpreter takes 0.02 s on a quiet machine; one on which it takes longer is given as much longer for the
    # rest, and 0.2 s on top, because even the fastest of five runs is not undisturbed on a busy one. What is loaded is
    # held by name above; this catches work done at the start.
    assert best - bare < aimed_at_s * max(1.0, bare / 0.02) + 0.2


def _seconds(code):
    started = time.perf_counter()
    result = run_python(code)
    taken = time.perf_counter() - started
    assert result.returncode == 0, result.stderr
    return taken


def test_the_error_tree_is_as_drawn():
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__)
    assert sorted([*drawn, "RarvisionError"]) == sorted(errors.__all__)
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.RarvisionError)
        assert getattr(errors, name).__doc__


def test_every_module_says_what_it_is_for_and_lists_its_names():
    for module in pkgutil.walk_packages(rarvision.__path__, "rarvision."):
        if ".embedded" in module.name or module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        assert loaded.__doc__, module.name
        assert len(loaded.__doc__) > 10, f"{module.name}: {loaded.__doc__!r}"
        for name in getattr(loaded, "__all__", ()):
            assert hasattr(loaded, name), f"{module.name}.{name}"


def test_torchvision_is_neither_needed_nor_imported():
    sources = Path(rarvision.__file__).parent.rglob("*.py")
    importing = re.compile(r"^\s*(import|from) torchvision", re.MULTILINE)
    assert [path.name for path in sources if importing.search(path.read_text())] == []


def test_what_is_imported_is_declared():
    """Extras are looked for by name, not imported; so every third-party import is a dependency of everybody.

    Training the embedded models is left out: it also uses what transformers brings.
    """
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(text for group in project["optional-dependencies"].values() for text in group)]
    declared = {re.split(r"[^\w.-]", text)[0].lower() for text in asked}
    providers = packages_distributions()
    undeclared = set()
    for path in Path(rarvision.__file__).parent.rglob("*.py"):
        if "training" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"rarvision"}:
                names = {name.lower().replace("_", "-") for name in providers.get(top, [top])}
                if not names & declared:
                    undeclared.add((path.name, top))
    assert undeclared == set()


def test_files_stay_short():
    here = Path(rarvision.__file__).parent
    sizes = {path.relative_to(here).as_posix(): len(path.read_text().splitlines()) for path in here.rglob("*.py")}
    assert {name: lines for name, lines in sizes.items() if lines > 550} == {}
