"""Claims about the house: who may import whom, which library lives in which room, and the sizes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
PACKAGE = HOUSE / "osum_echat"
FLOORS = (
    ("errors", "logs", "device", "paths", "settings", "cli", "files", "sound_headers",
     "ray_pool"),
    ("records", "audio", "vocab", "weights"),
    ("tasks", "thinking", "metrics"),
    ("sequence",),
    ("data", "models", "token2wav"),
    ("generation",),
    ("inference",),
    ("training",),
    ("evaluation", "serving"),
    ("__main__",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
APART = (1, 8)           # floors whose rooms never import each other
LOW = {"token2wav": 1}      # rooms that may only use the floors up to this one
HOMES = {                   # library -> the only places inside the package that may import it
    "transformers": ("models/", "vocab.py", "generation/kv_cache.py"),
    "peft": ("models/", "vocab.py"),
    "deepspeed": ("training/deepspeed_engine.py",),
    "onnxruntime": ("token2wav/voice.py", "serving/turns.py", "generation/step_graph.py"),
    "onnx": ("generation/step_graph.py",),
    "gradio": ("serving/",),
    "fastapi": ("serving/",),
    "uvicorn": ("serving/",),
    "openai": ("serving/", "evaluation/endpoint.py"),
    "prometheus_client": ("serving/",),
    "hibari": ("inference/talker.py",),
    "torch_npu": ("device.py",),
    "ray": ("ray_pool.py",),
    "vllm": ("generation/vllm_engine.py",),
    "jinja2": ("evaluation/report.py",),
    "torchaudio": (),
    "librosa": (),
}
LATE = {*HOMES, "tqdm", "soxr", "soundfile"}    # imported inside functions: `--help` is instant
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((HOUSE / "tests").rglob("*.py"))
OUTSIDE = sorted([*HOUSE.glob("*.py"), *(HOUSE / "benchmarks").rglob("*.py"),
                  *(HOUSE / "common_utils").rglob("*.py")])  # fmt: skip
DOORS = sorted(HOUSE.glob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from ((each.lineno, name.name) for name in each.names)
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, f"line {each.lineno}: relative import"
            whole = each.module == "osum_echat"
            yield from ((each.lineno, f"osum_echat.{name.name}" if whole else str(each.module))
                        for name in each.names)  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_room_imports_only_from_lower_floors_and_a_library_only_at_home(path):
    for line, name in imports(tree(path)):
        homes = HOMES.get(name.split(".")[0])
        at_home = homes is None or str(path.relative_to(PACKAGE)).startswith(homes)
        assert at_home, f"{name_of(path)}:{line}: {name} lives in {homes}"
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert room in FLOOR_OF, f"{room}: no such room in the house; add it to FLOORS or move it"
    for line, other in ((line, name.split(".")[1]) for line, name in imports(tree(path))
                        if name.startswith("osum_echat.")):  # fmt: skip
        assert other in FLOOR_OF, f"{name_of(path)}:{line}: {other} is in no floor"
        highest = LOW.get(room, FLOOR_OF[room])
        allowed = FLOOR_OF[other] <= highest or other == room
        assert allowed, f"{name_of(path)}:{line}: {room} may not import {other} from above"
        parted = FLOOR_OF[other] == FLOOR_OF[room] and FLOOR_OF[room] in APART and other != room
        assert not parted, f"{name_of(path)}:{line}: {room} and {other} are kept apart"


@pytest.mark.parametrize("path", [*SOURCES, *DOORS], ids=name_of)
def test_heavy_libraries_are_imported_late(path):
    for statement in tree(path).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for line, name in imports(statement):
                late = name.split(".")[0] in LATE
                assert not late, f"{name_of(path)}:{line}: import {name} where it is used"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_logs_writes_to_standard_output_and_only_device_names_a_maker(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.stdout":
            assert path.name == "logs.py", f"{name_of(path)}:{node.lineno}: use logs.out"
        if isinstance(node, ast.Constant) and node.value in ("npu", "cuda"):
            assert path.name == "device.py", f"{name_of(path)}:{node.lineno}"


@pytest.mark.parametrize("path", [*SOURCES, *OUTSIDE, *TESTS], ids=name_of)
def test_files_and_functions_stay_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    cap = 700 if path in TESTS else 60 if path in DOORS else 500
    assert lines <= cap, f"{name_of(path)}: {lines} lines, cap {cap}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= 60, f"{name_of(path)}:{node.lineno}: {node.name}: {size} lines, cap 60"


@pytest.mark.parametrize(("code", "told"), [
    ("import osum_echat, osum_echat.paths; assert 'yaml' not in sys.modules", ""),
    ("from osum_echat.evaluation import __main__, batch; __main__.parser(), batch.parser()", ""),
    ("import infer_runtime; infer_runtime.main(['--help'])", "--thinking"),
    ("import infer_gradio; infer_gradio.main(['--help'])", "--checkpoint-b"),
])  # fmt: skip
def test_imports_and_help_load_nothing_heavy(code, told):
    listed = "atexit.register(lambda: sys.stderr.write(repr([*sys.modules])))"
    code = f"import atexit, sys\n{listed}\n{code}"
    ran = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True)
    assert ran.returncode == 0 and told in ran.stdout, ran.stderr
    loaded = {name.partition(".")[0] for name in ast.literal_eval(ran.stderr)}
    assert "osum_echat" in loaded and not {"torch", "numpy", *LATE} & loaded
