"""How long is the code, and which room imports which?

    python -m fastdigin_bench.lines [CHECKOUT]

prints the lines of code per room (files that git tracks, of the kinds below), the files above 400
lines, the arrows between rooms, those that point up, and the circles of imports. Last comes one
line of JSON. An import counts wherever it stands in a file, also inside a function, but for those
under ``if TYPE_CHECKING``. Nothing is imported: the sources are parsed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

KINDS = (".py", ".pyi", ".cpp", ".h", ".inl", ".html", ".css", ".js")
LONGEST = 400
PACKAGES = {
    "fastdigin": Path("fastdigin"),
    "fastdigin_kernels": Path("kernels/fastdigin_kernels"),
    "fastdigin_bench": Path("bench/fastdigin_bench"),
}

ORDER = (
    "bench", "examples", "cli", "commands", "public", "doctor", "report", "audit", "scale", "tasks",
    "retrieval", "photos", "metrics", "datasets", "presets", "editing", "objectives", "engine",
    "models", "results", "embedded", "configuration", "storage", "hardware", "reading", "errors",
    "kernels",
)  # fmt: skip
"""The rooms from the top down: a room may import those below it (design, section 2).

"public" is fastdigin/__init__.py, which names what users import.
"""

ALONE = {"demo": "commands"}
"""Files that are no room of their own -> the room that they belong to."""

Modules = Mapping[str, set[str]]


def room(module: str) -> str:
    """The room of a module, such as "engine" of "fastdigin.engine.slot"."""
    package, _, rest = module.partition(".")
    if package != "fastdigin":
        return package.removeprefix("fastdigin_")
    name = rest.partition(".")[0] or "public"
    return ALONE.get(name, name)


def imports(checkout: Path) -> dict[str, set[str]]:
    """module -> the modules of the three packages that it imports."""
    files = {name: file for name, file in _modules(checkout)}
    return {
        name: set(_imported(ast.parse(file.read_text(encoding="utf-8")), files.keys())) - {name}
        for name, file in files.items()
    }


def arrows(modules: Modules) -> dict[tuple[str, str], list[str]]:
    """(room, room that it imports) -> the imports, as "module -> module"."""
    found = defaultdict(list)
    for name, imported in sorted(modules.items()):
        for other in sorted(imported):
            if room(name) != room(other):
                found[room(name), room(other)].append(f"{name} -> {other}")
    return dict(found)


def points_up(arrow: tuple[str, str]) -> bool:
    """Whether an arrow points up against ORDER. A room that ORDER lacks has no place: it does."""
    if not set(arrow) <= set(ORDER):
        return True
    return ORDER.index(arrow[0]) > ORDER.index(arrow[1])


def circles(modules: Modules) -> list[list[str]]:
    """Modules that import each other in a circle; of circles that overlap, some."""
    left = {name: set(imported) for name, imported in modules.items()}
    found = []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            imported, importer, *_ = error.args[1]
            found.append(sorted(set(error.args[1])))
            left[importer].discard(imported)
        else:
            return sorted(found)


def count_lines(checkout: Path) -> dict[Path, int]:
    """Lines of every file of KINDS that git tracks."""
    listed = subprocess.run(
        ["git", "-C", str(checkout), "ls-files"], check=True, capture_output=True, text=True
    )
    files = [Path(line) for line in listed.stdout.splitlines() if line.endswith(KINDS)]
    return {
        file: len((checkout / file).read_text(encoding="utf-8").splitlines())
        for file in files
        if (checkout / file).exists()
    }


def _folder(file: Path) -> str:
    """What a file's lines are counted under: a room, or a folder of the tests."""
    for package, folder in PACKAGES.items():
        if folder in file.parents:
            return room(_module_name(package, file.relative_to(folder)))
    if file.parts[0] == "tests":
        return "tests/" + (file.parts[1] if len(file.parts) > 2 else "")
    return "/".join(file.parts[:-1][:2]) or "."


def _modules(checkout: Path) -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for file in sorted((checkout / folder).rglob("*.py")):
            yield _module_name(package, file.relative_to(checkout / folder)), file


def _module_name(package: str, file: Path) -> str:
    parts = [package, *file.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.AST, known: Iterable[str]) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import is not followed: {ast.unparse(node)}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield whole
                elif node.module in known:
                    yield node.module
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from _imported(node, known)


def main(arguments: list[str]) -> int:
    """Prints all of it for the checkout that is named, or for the current folder."""
    checkout = Path(arguments[0]) if arguments else Path.cwd()
    lines, rooms = count_lines(checkout), Counter()
    for file, count in lines.items():
        rooms[_folder(file)] += count
    for name, count in sorted(rooms.items()):
        print(f"{name:<24}{count:>7}")
    print(f"{'all':<24}{sum(rooms.values()):>7}\n")
    long = {str(file): count for file, count in lines.items() if count > LONGEST}
    for file, count in long.items():
        print(f"above {LONGEST} lines: {file} ({count})")
    modules = imports(checkout)
    found = arrows(modules)
    below = defaultdict(list)
    for above, other in sorted(found):
        below[above].append(other)
    for name, others in below.items():
        print(f"{name} -> {', '.join(others)}")
    up = {arrow: which for arrow, which in found.items() if points_up(arrow)}
    for which in up.values():
        print(f"points up: {'; '.join(which)}")
    rings = circles(modules)
    for ring in rings:
        print(f"circle: {', '.join(ring)}")
    result = {
        "lines": dict(sorted(rooms.items())),
        "total": sum(rooms.values()),
        "above_400": long,
        "arrows_up": sorted(f"{above} -> {other}" for above, other in up),
        "circles": rings,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
