"""The order of the rooms in docs/architecture.md, read from the imports: a room imports only from those above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "videollava_jax"

# From the ground up: folders, and the modules on the ground floor. Inside a folder any order holds that has no circle.
ORDER = (
    "version",
    "named_errors",
    "json_files",
    "extras",
    "config",
    "assets",
    "hub",
    "temporary",
    "compressed",
    "media",
    "processing",
    "compilation_cache",
    "compiler_options",
    "model",
    "costs",
    "weights",
    "generation",
    "face",
    "chat",
    "engine",
    "batch",
    "serving",
    "evaluation",
    "training",
    "planning",
    "cli",
)
# What prepares inputs runs where there is no JAX and starts without waiting for it. What decides, and knows no JAX,
# is tested without compiling anything.
WITHOUT_JAX = (
    "version",
    "named_errors",
    "json_files",
    "extras",
    "config",
    "assets",
    "hub",
    "temporary",
    "compressed",
    "media",
    "processing",
    "costs",
    "generation.kinds",
    "generation.fields",
    "generation.call_options",
    "generation.options",
    "generation.text",
    "generation.buckets",
    "engine.options",
    "engine.request",
    "engine.preparation",
    "engine.digests",
    "engine.readers",
    "engine.sizes",
    "engine.budget",
    "engine.packing",
    "engine.events",
    "engine.arrivals",
    "engine.groups",
    "engine.filling",
    "engine.rows",
    "engine.usage",
    "engine.tickets",
    "engine.schedule",
    "batch.media",
    "batch.forms",
    "batch.lines",
    "batch.requests",
    "batch.records",
    "batch.job_files",
    "batch.output",
    "batch.ledger",
    "batch.completions",
    "batch.servers",
    "serving",
    "evaluation",
    "training.data",
    "training.update.options",
    "training.run.recipe",
    "training.run.named_recipes",
)
# Read by users only: it needs transformers, whose import takes seconds.
FOR_USERS = "face"
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
# The authors' checkpoints can be torch's own files: read where torch is installed, refused with a reason elsewhere.
MAY_IMPORT_TORCH = {"weights.files"}


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
      name: `videollava_jax.media.image`, `jax.numpy`.
      when: "load" with the module that imports it, "call" inside a function, "typing" under TYPE_CHECKING.
    """

    name: str
    when: str
    line: int


def imports(path: Path, package: Path) -> Iterator[Import]:
    """The imports of a file; `from videollava_jax import x` is the module x where there is one."""

    def walk(node: ast.AST, when: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, when, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                home = child.module or ""
                if child.level:
                    above = (package.name, *path.parent.relative_to(package).parts)
                    home = ".".join([*above[: len(above) - child.level + 1], *filter(None, [home])])
                for alias in child.names:
                    inner = package.parent.joinpath(*home.split("."), alias.name)
                    is_module = inner.with_suffix(".py").is_file() or (inner / "__init__.py").is_file()
                    yield Import(f"{home}.{alias.name}" if is_module else home, when, child.lineno)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(ast.Module(child.body, []), "typing")
                yield from walk(ast.Module(child.orelse, []), when)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from walk(child, "call" if when == "load" else when)
            else:
                yield from walk(child, when)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "load")


def problems(package: Path) -> list[str]:
    """What breaks the order, a sentence each, with the file and line."""
    found, inside = [], {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        floor = parts[0]
        if floor != "__init__" and floor not in ORDER:
            found.append(
                f"{path.name}: {floor!r} is not in ORDER of {Path(__file__).name}: give it its place there and in "
                "docs/architecture.md, below everything that it imports"
            )
            continue
        inside[name] = set()
        for item in imports(path, package):
            where = f"{path.relative_to(package.parent)}:{item.line}"
            top, *rest = item.name.split(".")
            if top == "torch" and (name not in MAY_IMPORT_TORCH or item.when == "load"):
                found.append(f"{where}: imports torch; nothing in the package needs it")
            if top in ("convert", "train", "tests"):
                found.append(f"{where}: imports {item.name}, which is not installed with the package")
            if top in JAX and without_jax(name):
                found.append(f"{where}: imports {item.name}; {name} does without JAX")
            if top != package.name:
                continue
            below = rest[0] if rest else "__init__"
            if floor == "__init__":
                if below != "version" and item.when == "load":
                    found.append(
                        f"{where}: imports {item.name} when it is itself imported; public names load when used"
                    )
            elif below == floor:
                inside[name].add(".".join(rest))
            elif below == FOR_USERS:
                found.append(f"{where}: imports {item.name}; {below} is for users, and nothing else imports it")
            elif below not in ORDER[: ORDER.index(floor)]:
                found.append(f"{where}: imports {item.name}, but {below} does not stand above {floor}")
            if top == package.name and without_jax(name) and not without_jax(".".join(rest)) and item.when != "typing":
                found.append(f"{where}: imports {item.name}, which may use JAX; {name} does without")
    found += [f"a circle of imports: {circle}" for circle in circles(inside)]
    return found + [f"a circle of folders: {circle}" for circle in circles(by_folder(package, inside))]


def by_folder(package: Path, graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports between folders of a room that stand side by side: `training.run` imports from `training.data`.

    A folder and one inside it are one thing here: `model.attention` calls what `model.kernels` holds.
    """

    def folder(name: str) -> str:
        return name if package.joinpath(*name.split(".")).is_dir() else name.rpartition(".")[0]

    folders: dict[str, set[str]] = {}
    for name, imported in graph.items():
        folders.setdefault(folder(name), set()).update(folder(other) for other in imported)

    def related(one: str, other: str) -> bool:
        return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")

    return {name: {other for other in others if not related(name, other)} for name, others in folders.items()}


def without_jax(name: str) -> bool:
    """Whether a module, or a folder that it stands in, is one of those without JAX."""
    return any(name == room or name.startswith(f"{room}.") for room in WITHOUT_JAX)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves through the imports of their package."""
    found = []
    for start in graph:
        reached, front = set(), set(graph[start])
        while front:
            reached |= front
            front = {after for name in front for after in graph.get(name, ())} - reached
        if start in reached:
            found.append(start)
    return found


def plain_imports(directory: Path) -> dict[str, set[str]]:
    """Returns which programs of a directory import which others, by their names."""
    programs = {path.stem: path for path in sorted(directory.glob("*.py"))}
    return {name: {i.name for i in imports(path, directory)} & set(programs) for name, path in programs.items()}


def test_the_package_keeps_the_order():
    assert not problems(PACKAGE), "\n".join(problems(PACKAGE))


def test_the_table_is_that_of_the_documentation():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.split("## Rooms", 1)[1].split("```")[1]
    lines = [line for line in block.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    named = [name for line in lines for name in re.findall(r"([a-z_]+)(?:\*?\.py|/)", line.split("  ")[1])]
    assert named == [name for name in ORDER if name != "version"]


def test_benchmarks_import_each_other_without_a_circle():
    assert not circles(plain_imports(ROOT / "benchmarks"))


def test_a_circle_of_programs_is_found(tmp_path):
    """Programs import each other by plain names; a type's import counts, as it says who knows whom."""
    (tmp_path / "a.py").write_text("import json\n\n\ndef main():\n    from b import B")
    (tmp_path / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import Work")
    (tmp_path / "c.py").write_text("import a")
    assert circles(plain_imports(tmp_path)) == ["a", "b"]


def test_every_module_stands_on_the_page_and_nothing_else():
    """Each file of the package is named once at least, in the drawing of its room, and every name has its file."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn, room, folder = set(), "", ""
    for line in (line for block in text.split("```")[1::2] for line in block.splitlines()):
        if head := re.match(r"([a-z_]+)/", line):
            room, folder = head[1], ""
        if inner := re.match(r"(?:  |[a-z_]+/ +)([a-z_]+)/ ", line):
            folder = inner[1]
        elif re.match(r"  ?\S", line):
            folder = ""
        drawn |= {"/".join(filter(None, (room, folder, name))) for name in re.findall(r"([a-z_0-9]+\.py)", line)}
    files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    files -= {name for name in files if name.endswith("__init__.py")} | {"version.py"}
    missing = {name for name in files if name not in drawn and f"videollava_jax/{name}" not in drawn}
    assert not missing, f"docs/architecture.md does not name {sorted(missing)}"
    named = {name.removeprefix("videollava_jax/") for name in drawn}
    assert named <= files, f"docs/architecture.md names files that are not there: {sorted(named - files)}"


def test_every_entry_of_the_table_is_there():
    missing = [n for n in ORDER if not (PACKAGE / f"{n}.py").is_file() and not (PACKAGE / n / "__init__.py").is_file()]
    assert not missing


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"weights/a.py": "from pkg.engine import X"}, "a.py:1: imports pkg.engine, but engine does not stand above"),
        ({"weights/a.py": "def f():\n  from pkg import engine"}, "a.py:2: imports pkg.engine, but engine"),
        ({"weights/a.py": "from ..engine import X"}, "a.py:1: imports pkg.engine, but engine does not stand above"),
        (
            {"media/image.py": "from ..cli import main"},
            "image.py:1: imports pkg.cli, but cli does not stand above media",
        ),
        ({"cli/ask.py": "from pkg.face.processor import X"}, "ask.py:1: imports pkg.face.processor; face is for users"),
        ({"attic.py": ""}, "'attic' is not in ORDER"),
        ({"attic/__init__.py": ""}, "'attic' is not in ORDER"),
        (
            {"processing/prompt.py": "import jax.numpy as jnp"},
            "prompt.py:1: imports jax.numpy; processing.prompt does without JAX",
        ),
        ({"media/video.py": "def f():\n  import flax"}, "video.py:2: imports flax; media.video does without JAX"),
        ({"batch/lines.py": "from pkg import model"}, "imports pkg.model, which may use JAX; batch.lines does without"),
        ({"model/a.py": "def f():\n  import torch.nn"}, "a.py:2: imports torch"),
        ({"weights/files.py": "import torch"}, "files.py:1: imports torch"),
        ({"cli/__init__.py": "from train.tiny import main"}, "imports train.tiny, which is not installed"),
        ({"cli/__init__.py": "from pkg import __version__"}, "imports pkg, but __init__ does not stand above cli"),
        ({"__init__.py": "from pkg.model import X"}, "imports pkg.model when it is itself imported"),
        (
            {"media/a.py": "from pkg.media import b", "media/b.py": "from pkg.media.a import x"},
            "circle of imports: media.a",
        ),
        (
            {"media/__init__.py": "from pkg.media.a import x", "media/a.py": "import pkg.media"},
            "circle of imports: media",
        ),
        (
            {
                "training/data/__init__.py": "",
                "training/data/a.py": "from pkg.training.run import b",
                "training/data/c.py": "",
                "training/run/__init__.py": "",
                "training/run/b.py": "from pkg.training.data import c",
            },
            "circle of folders: training.data",
        ),
    ],
)
def test_what_breaks_the_order_is_found(tmp_path, files, expected):
    package = tmp_path / "pkg"
    for name in ("model/__init__.py", "engine/__init__.py", "cli/__init__.py", *files):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(files.get(name, ""))
    found = problems(package)
    assert any(expected in problem for problem in found), found


def test_what_keeps_the_order_passes(tmp_path):
    files = {
        "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from pkg.model.layers import X",
        "model/__init__.py": "",
        "model/layers.py": "import jax",
        "model/decoder.py": "from pkg.model import layers\nfrom pkg.model.layers import X",
        "media/__init__.py": "from pkg.media.image import a",
        "media/image.py": "from pkg.media.errors import b\nimport numpy",
        "media/errors.py": "",
        "batch/lines.py": "from pkg.media import a\nimport typing\nif typing.TYPE_CHECKING:\n  from pkg.model import X",
        "batch/runner.py": "from pkg.batch.lines import a\nfrom pkg.model import layers",
        "training/data/rows.py": "",
        "training/run/loop.py": "from pkg.training.data.rows import X",
        "weights/files.py": "def f():\n  import torch",
    }
    for name, text in files.items():
        (tmp_path / "pkg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pkg" / name).write_text(text)
    assert problems(tmp_path / "pkg") == []


def test_inputs_are_prepared_without_jax():
    """In a process of its own: after each import, whether JAX came with it."""
    modules = [
        "videollava_jax",
        *(f"videollava_jax.{name}" for name in ORDER if name in WITHOUT_JAX),
        *(f"videollava_jax.{name}" for name in WITHOUT_JAX if "." in name),
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        f"    came = sorted({JAX | {'torch'}} & set(sys.modules))\n"
        "    assert not came, f'{name} imports {came}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
