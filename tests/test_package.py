"""What the package promises as a whole: light imports, true public names, one declaration of settings."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import llmkit
from llmkit import api
from llmkit.config import settings
from llmkit.config.declaration import nested_kind
from llmkit.server.settings import ServeOptions, ServeSettings
from llmkit.tasks import TASKS, PromptKeywords, PromptOptions

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "evaluate", "numpy", "huggingface_hub")


@pytest.mark.parametrize(
    "code",
    [
        "import llmkit",
        "from llmkit.cli import main; assert main(['--help']) == 0",
        "from llmkit.cli import main; assert main(['generate', '--help']) == 0",
        "from llmkit.cli import main; assert main(['generate', '--temperature', '-1', 'hello']) == 2",
        "from llmkit.cli import main; assert main(['generate', '']) == 2",
        "from llmkit.cli import main; assert main(['models']) == 0",
        "import os; os.environ |= {'_LLMKIT_COMPLETE': 'complete_bash', 'COMP_WORDS': 'llmkit finetune s', "
        "'COMP_CWORD': '2'}\nfrom llmkit.cli import main\ntry: main([])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    # Typer itself uses pydantic to convert the arguments of a command.
    heavy = (*HEAVY, "pydantic", "yaml") if code == "import llmkit" or "(['--help'])" in code else HEAVY
    check = f"{code}\nimport sys\nassert not (found := [m for m in {heavy!r} if m in sys.modules]), found"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_all_is_the_public_surface() -> None:
    public = {name for name in dir(llmkit) if not name.startswith("_")} | {"__version__"}
    assert public == set(llmkit.__all__)
    for name in llmkit.__all__:
        assert getattr(llmkit, name) is not None


def test_type_checkers_see_the_same_names() -> None:
    source = inspect.getsource(llmkit)
    mirror = {line.rsplit(" as ", 1)[1] for line in source.splitlines() if line.startswith("    from llmkit")}
    assert mirror == set(llmkit.__all__) - {"__version__"}
    assert mirror == set(llmkit._HOME)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'summarise'"):
        llmkit.summarise  # noqa: B018


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        (settings.LoadOptions, [settings.LoadSettings]),
        (settings.Options, [settings.LoadSettings, settings.GenerationSettings]),
        (PromptKeywords, [PromptOptions]),
        (ServeOptions, [settings.LoadSettings, ServeSettings]),
        (
            api.TaskOptions,
            [settings.LoadSettings, settings.GenerationSettings, *(task.settings_class for task in TASKS.values())],
        ),
    ],
)
def test_keyword_arguments_mirror_the_settings(options: type, classes: list[Any]) -> None:
    declared = {item.name: get_type_hints(each)[item.name] for each in classes for item in fields(each)}
    declared.pop("model", None)
    declared = {name: hint | str | Path if nested_kind(hint) else hint for name, hint in declared.items()}
    if "json_schema" in declared:
        declared["json_schema"] |= type[Any]  # of Pydantic
    written = get_type_hints(options)
    if "length" in written:  # a number is taken too, and kept as text
        assert written.pop("length") == str | int
        assert declared.pop("length") is str
    assert written == declared


def test_nobody_asks_which_head_it_is() -> None:
    """But for what decides which one a checkpoint gets; the rest asks for facts, or the head to do it."""
    asked = []
    for path in Path(llmkit.__file__).parent.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if path.parent.name != "heads" and re.search(r"\bHead\.[A-Z]", line):
                asked.append(f"{path.name}:{number}: {line.strip()}")
    declared = [line for line in asked if re.search(r"Head\.\w+: HeadFacts\(|: heads\b", line)]
    assert len(asked) - len(declared) <= 10, asked


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert llmkit.__version__ == version("llmkit")


def test_the_wheel_holds_every_package_and_the_recipes() -> None:
    root = Path(__file__).parents[1]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(root).parts) for path in (root / "llmkit").rglob("__init__.py")}
    assert set(setuptools["packages"]) == found | {"llmkit.recipes"}
    assert setuptools["package-dir"]["llmkit.recipes"] == "recipes"
    assert all(len(path.relative_to(root / "recipes").parts) == 2 for path in (root / "recipes").rglob("*.*"))
