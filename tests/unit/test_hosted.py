"""The setup cell on Colab and Kaggle: real pip in environments with stand-ins for what is installed and loaded there.

Each environment is a venv of its own that holds tiny packages in the names and versions of the real ones; what may be
installed lies as wheels in a folder, and pip sees nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import packaging
import pip
import pytest
from packaging.requirements import Requirement

from cookbook import hosted, project

ROOT = Path(__file__).resolve().parents[2]
CELL = next(
    cell.source
    for cell in nbformat.read(ROOT / "notebooks" / "01_customer_service_qlora.ipynb", as_version=4).cells
    if "setup" in cell.metadata.get("tags", [])
)
COLAB = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
NEEDS = ["numpy>=1.26", "torch>=2.11,<2.14", "transformers>=5.14,<6", "trl>=1.13,<2", "jupyterlab>=4.2"]
Place = Callable[..., subprocess.CompletedProcess[str]]


def package(folder: Path, name: str, version: str, *needs: str) -> None:
    """An installed package: a module that knows its version, and what pip reads of it."""
    for path, text in contents(name, version, needs).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for path, text in contents(name, version, needs).items():
            file.writestr(path, text)


def contents(name: str, version: str, needs: tuple[str, ...]) -> dict[str, str]:
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {f"{name}/__init__.py": f"__version__ = '{version}'\n", f"{info}/METADATA": "\n".join(lines) + "\n\n"}
    files |= {f"{info}/WHEEL": tags, f"{info}/INSTALLER": "pip\n"}
    return files | {f"{info}/RECORD": "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])}


@pytest.fixture
def machine(tmp_path: Path) -> Place:
    """A project and an environment, where `machine(code)` runs Python in `notebooks` of the project."""
    clone, wheels, env = tmp_path / "clone", tmp_path / "wheels", tmp_path / "env"
    for name in ("__init__", "hosted", "project"):
        (clone / "cookbook").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "cookbook" / f"{name}.py", clone / "cookbook")
    (clone / "pyproject.toml").write_text(f'[project]\nname = "x"\ndependencies = {NEEDS}\n')
    (clone / "notebooks").mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    site = next(env.rglob("site-packages"))
    for tool in (pip, packaging):  # those of this environment, without its other packages
        source = Path(tool.__file__).parent
        (site / source.name).symlink_to(source)
    package(site, "numpy", "2.0.2")
    package(site, "torch", "2.11.0+cu128", "numpy")
    package(site, "transformers", "5.15.0")
    wheels.mkdir()
    wheel(wheels, "numpy", "2.4.0")
    wheel(wheels, "torch", "2.13.0")
    wheel(wheels, "jupyterlab", "4.5.0")
    wheel(wheels, "trl", "1.14.0", "numpy>=1.26", "torch>=2", "transformers>=4")
    wheel(wheels, "trl", "1.16.0", "numpy>=2.3")  # better, if numpy might be replaced
    wheel(wheels, "trl", "2.0.0")  # beyond the range
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "COOKBOOK_", "KAGGLE_"))}
    variables |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}

    def run(code: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [env / ("Scripts" if os.name == "nt" else "bin") / "python", "-c", code],
            cwd=clone / "notebooks",
            env=variables | more,
            capture_output=True,
            text=True,
            timeout=120,
        )

    run.site, run.wheels, run.clone = site, wheels, clone
    return run


def versions(machine: Place) -> list[str]:
    return sorted(path.name.removesuffix(".dist-info") for path in machine.site.glob("*.dist-info"))


def test_locally_nothing_happens(machine: Place) -> None:
    done = machine(CELL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert versions(machine) == ["numpy-2.0.2", "torch-2.11.0+cu128", "transformers-5.15.0"]


def test_what_is_missing_is_installed_and_numpy_and_torch_stay(machine: Place) -> None:
    done = machine(f"{COLAB}import numpy, torch\n{CELL}\nimport trl; print('then', trl.__version__)")
    assert done.returncode == 0, done.stderr
    assert versions(machine) == ["numpy-2.0.2", "torch-2.11.0+cu128", "transformers-5.15.0", "trl-1.14.0"]
    lines = done.stdout.splitlines()
    assert lines[0] == "installing trl<2,>=1.13" and lines[-1] == "then 1.14.0"
    assert ["torch", "2.11.0+cu128", "<2.14,>=2.11"] in [line.split() for line in lines]
    assert "jupyterlab" not in done.stdout and len(lines) == 6  # four packages, and nothing to complain of
    again = machine(CELL, KAGGLE_KERNEL_RUN_TYPE="Interactive")
    assert again.returncode == 0 and "installing" not in again.stdout and "trl            1.14.0" in again.stdout


def test_without_the_constraint_pip_would_replace_numpy(machine: Place) -> None:
    done = machine("import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', 'trl<2'])")
    assert "numpy-2.4.0" in versions(machine) and "trl-1.16.0" in versions(machine), done.stderr


def test_what_is_too_old_is_said_in_words(machine: Place) -> None:
    for old in ("transformers-5.15.0", "torch-2.11.0+cu128"):
        shutil.rmtree(machine.site / f"{old}.dist-info")
    package(machine.site, "transformers", "4.57.1")
    package(machine.site, "torch", "2.6.0")
    done = machine(COLAB + CELL)
    assert done.returncode == 0, done.stderr
    assert "torch-2.6.0" in versions(machine) and "transformers-4.57.1" in versions(machine)
    said = done.stdout.split("\n\n")[1:]
    assert said[0] == (
        "torch 2.6.0 is too old (this project: <2.14,>=2.11): "
        "it comes with this machine and is not replaced: choose a newer runtime."
    )
    assert said[1].startswith("transformers 4.57.1 is too old (this project: <6,>=5.14): run %pip install 'transf")
    assert said[1].endswith("then restart the session and run the notebook from the top.\n") and len(said) == 2


def test_what_pip_cannot_do_ends_with_a_sentence(machine: Place) -> None:
    for file in machine.wheels.glob("trl-*"):
        file.unlink()
    done = machine(
        COLAB + CELL, PIP_FIND_LINKS="https://me:secret@localhost:9/x " + str(machine.wheels), PIP_RETRIES="0"
    )
    assert done.returncode == 1
    assert "RuntimeError: trl<2,>=1.13: pip could not install them. It said:" in done.stderr
    assert "No matching distribution found for trl" in done.stderr


def test_a_notebook_alone_says_what_to_do_or_clones(machine: Place, tmp_path: Path) -> None:
    (machine.clone / "cookbook").rename(machine.clone / "elsewhere")
    (machine.clone / "notebooks" / "cookbook").mkdir()  # a folder of that name is no package
    done = machine(COLAB + CELL)
    assert done.returncode == 1 and "Clone or upload the whole project" in done.stderr.splitlines()[-1]
    from cookbook import opening

    (machine.clone / "elsewhere").rename(machine.clone / "cookbook")
    shutil.rmtree(machine.clone / "notebooks" / "cookbook")
    source = tmp_path / "a-cookbook"
    shutil.copytree(machine.clone, source)
    shutil.rmtree(machine.clone / "cookbook")
    (source / ".gitignore").write_text("__pycache__\n")
    git = ["git", "-C", str(source), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    cell = opening.setup(f"file://{source}")
    assert machine(cell).returncode == 1  # locally it clones nothing
    for _ in range(2):  # the second time, as after a restart, the clone is there
        done = machine(f"{COLAB}{cell}\nprint(hosted.__file__)")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == str(
            machine.clone / "notebooks" / "a-cookbook" / "cookbook" / "hosted.py"
        )


def test_a_version_that_is_loaded_but_no_longer_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("packaging")
    module.__version__ = "1.0"
    monkeypatch.setitem(sys.modules, "packaging", module)
    said = hosted.faults([Requirement("packaging")])
    assert len(said) == 1 and said[0].startswith("packaging 1.0 is loaded, but ")
    assert said[0].endswith("is installed: restart the session and run the notebook from the top.")
    said = hosted.faults([Requirement("packaging<2")])
    assert "newer than what was tried (this project: <2): run %pip install 'packaging<2', then restart" in said[0]


def test_nothing_is_wrong_where_the_project_is_installed() -> None:
    """Also: what the packages say of their own version is what is installed, or this would cry wolf."""
    import accelerate  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401

    required = project.required()[1]
    assert len(required) > 20 and hosted.faults(required) == []


def test_what_a_hosted_machine_lacks_has_an_upper_end() -> None:
    stack = (
        "accelerate bitsandbytes datasets datasketch evaluate gguf jiwer lm-eval peft rouge-score transformers trl"
    )
    ranges = {requirement.name: str(requirement.specifier) for requirement in project.required()[1]}
    assert [name for name in stack.split() if "<" not in ranges[name]] == []
    assert hosted.SERVER < set(ranges)


SECRETS = """
import builtins, sys, types
errors, userdata = types.ModuleType("google.colab.errors"), types.ModuleType("google.colab.userdata")
class Error(Exception): pass
class SecretNotFoundError(Error): pass
class NotebookAccessError(Error): pass
kept = dict(KEPT)
def get(name):
    if name not in kept:
        raise SecretNotFoundError(name)
    return kept[name]
errors.Error, userdata.get = Error, get
userdata.SecretNotFoundError, userdata.NotebookAccessError = SecretNotFoundError, NotebookAccessError
colab = types.ModuleType("google.colab")
colab.userdata, colab.errors = userdata, errors
sys.modules |= {"google.colab": colab, "google.colab.userdata": userdata, "google.colab.errors": errors}
builtins.get_ipython = lambda: "<google.colab._shell.Shell>"
import huggingface_hub
print(huggingface_hub.get_token())
"""


@pytest.mark.parametrize(
    ("environment", "kept", "token"),
    [
        ("from-env", "HF_TOKEN='from-secrets'", "from-env"),
        ("", "HF_TOKEN='from-secrets'", "from-secrets"),
        ("", "", "None"),
    ],
)
def test_a_hub_token_comes_from_the_environment_then_from_colabs_secrets(
    environment: str, kept: str, token: str, tmp_path: Path
) -> None:
    """The project reads none itself: transformers and datasets ask huggingface_hub, in this order."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    variables |= {"HF_TOKEN": environment, "HF_HOME": str(tmp_path)}
    code = SECRETS.replace("KEPT", kept)
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{token}\n", "")
