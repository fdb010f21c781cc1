"""The pages say what is so: commands parse and run, examples are the files, links lead somewhere, messages exist.

What a command in a page needs is decided beside it, in a comment on the line before its block: ``<!-- run -->``,
``<!-- run: slow -->`` (by `make test-slow`), or ``<!-- not run: REASON -->``. Launches run at the smoke scale.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from jsonschema import Draft7Validator

import run_sweep
from sweeps.config import parse_sweep
from sweeps.json_schema import sweep_schema
from sweeps.reading import SECTIONS
from sweeps.yaml_source import read_yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN_FAST = ("docs/getting_started.md", "README.md", "docs/cluster.md")
RUN_SLOWLY = (*RUN_FAST, "docs/extending.md")
COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(python run_sweep\.py|python -m|make)\b")
DECISION = re.compile(r"<!-- (run|run: slow|not run: \S.*) -->")
DRIVERS = ("resume", "retry", "extend", "evaluate", "confirm")
"""Commands that start Ray, which is not to be started within the tests' own process."""
CLI = typer.main.get_command(run_sweep.app)


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page."""

    page: str
    line: int
    language: str
    text: str
    before: str
    """The line before the fence."""

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        whole = self.text.replace("\\\n", " ")
        return [line for line in whole.splitlines() if COMMAND.match(line)]

    @property
    def decision(self) -> str:
        found = DECISION.fullmatch(self.before)
        return found[1] if found else ""


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        before = lines[start - 1] if start else ""
        text = "\n".join(lines[start + 1 : number]) + "\n"
        yield Block(str(page.relative_to(ROOT)), start + 1, lines[start][3:].strip(), text, before)
        start = None


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
WITH_COMMANDS = [block for block in BLOCKS if block.commands]
YAML = [block for block in BLOCKS if block.language == "yaml"]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def arguments_of(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    return words[next(i for i, word in enumerate(words) if "=" not in word) :]


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words begin with, of a group the one within it, and the other words."""
    command: Any = CLI
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"no command {name!r}"
        command = command.commands[name]
    return command, words


def parse(arguments: list[str]) -> Any:
    """Parse what follows ``python run_sweep.py`` as the command line does; click's error if it would refuse."""
    command, rest = find_command(arguments)
    return command.make_context(arguments[0], rest)


def named_in(page: str) -> list[str]:
    """The files that a page tells its reader to write: YAML blocks that begin with their name."""
    return [block.text.split()[1] for block in YAML if block.page == page and re.match(r"# \w+\.yaml\n", block.text)]


@pytest.mark.parametrize("block", WITH_COMMANDS, ids=lambda block: block.name)
def test_every_command_of_a_page_is_one_and_is_run_or_says_why_not(block: Block) -> None:
    assert block.decision, "write <!-- run -->, <!-- run: slow --> or <!-- not run: REASON --> on the line before"
    for command in block.commands:
        words = arguments_of(command)
        if words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in words[1:] if "=" not in word} <= set(targets), command
        elif words[1] == "-m":
            module = ROOT / words[2].replace(".", "/")
            known = words[2] in ("venv", "pip", "pytest")
            assert known or module.with_suffix(".py").exists() or module.is_dir(), command
        else:
            parse(words[2:])
            for word in words[3:]:
                ours = word.endswith(".yaml") and word not in named_in(block.page)
                assert not ours or "/" not in word or (ROOT / word).exists(), f"{word} is not there"


def test_every_command_is_in_the_readmes_table_with_options_that_exist() -> None:
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    synopses = [part for row in rows for part in re.split(r"`, `", row)]
    for synopsis in synopses:
        command, _ = find_command(synopsis.split())
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", synopsis)) <= options, synopsis
    assert {synopsis.split()[0] for synopsis in synopses} == CLI.commands.keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_pages_prose_exists(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for inline in re.findall(r"`([^`\n]+)`", prose):
        found = re.match(r"(?:python )?run_sweep\.py ([a-z]+)", inline)
        assert found is None or found[1] in CLI.commands, inline  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.name)
def test_every_yaml_block_is_a_sweep_a_part_of_one_or_an_attack_plan(block: Block) -> None:
    document: Any = read_yaml(block.text, block.name)[0]
    sweep = document if document.keys() <= set(SECTIONS) else {"attacks": document}
    assert [error.message for error in Draft7Validator(sweep_schema()).iter_errors(sweep)] == []
    if block.text.split()[1] in named_in(block.page):
        assert parse_sweep({**document, "data": {}} if "path" in document.get("data", {}) else document).methods


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_every_python_block_compiles_and_is_the_file_that_it_names(block: Block) -> None:
    compile(block.text, block.name, "exec")
    named = re.fullmatch(r"<!-- (examples/\S+) -->", block.before)
    if named:
        assert block.text == (ROOT / named[1]).read_text(), f"copy {named[1]} into the page"


def test_every_example_is_shown_whole() -> None:
    shown = {block.before for block in BLOCKS if block.page == "docs/extending.md"}
    files = [path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".yaml")]
    assert {f"<!-- examples/{path.name} -->" for path in files} <= shown
    for block in BLOCKS:
        if block.before == "<!-- examples/extended.yaml -->":
            assert block.text == (ROOT / "examples" / "extended.yaml").read_text()


def slugs(page: Path) -> set[str]:
    """The anchors that a reader's browser finds on a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_project_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or there.suffix != ".md" or anchor in slugs(there), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page for page in PAGES if page.parent.name != "results" and page.name != "README.md"]
    assert [page.name for page in pages if f"]({page.name})" not in index] == []


def messages() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return [quote.replace("\n> ", " ") for quote in re.findall(r"^> ((?:.|\n> )+)$", page, re.MULTILINE)]


@pytest.fixture(scope="module")
def source() -> str:
    """Every string of the project, those that the code breaks over lines in one piece."""
    folders = ("sweeps", "trainables", "cluster", "search_spaces")
    files = [ROOT / "run_sweep.py", *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    text = "\n".join(path.read_text() for path in sorted(files))
    return re.sub(r'["\']\s*\n\s*f?["\']', "", text)


@pytest.mark.parametrize("message", messages() if (ROOT / "docs" / "troubleshooting.md").exists() else [])
def test_every_message_of_the_troubleshooting_page_is_one_of_the_codes(message: str, source: str) -> None:
    fixed = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
    assert sum(map(len, fixed)) > 10, "quote more of it"
    assert re.search(r".{0,100}?".join(fixed), source), message


class Reader:
    """Does what a page says, in a folder of its own that looks like the project's."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._capsys, self._monkeypatch = folder, capsys, monkeypatch
        for name in ("sweeps", "cluster", "examples", "docs", "run_sweep.py"):
            (folder / name).symlink_to(ROOT / name)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        x, y = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8), np.arange(200) % 10
        self.known: dict[str, Any] = {"x_train": x, "y_train": y, "x_test": x[:50], "y_test": y[:50]}

    def follow(self, page: str, *, slowly: bool) -> int:
        """Run what is to be run, in order, and return how many commands that were."""
        done = 0
        for block in (block for block in BLOCKS if block.page == page):
            if block.language == "yaml" and block.text.split()[1] in named_in(page):
                Path(block.text.split()[1]).write_text(block.text)
            if block.decision == "run" or (slowly and block.decision == "run: slow"):
                if block.language == "python":
                    exec(compile(block.text, block.name, "exec"), self.known)
                for command in block.commands:
                    self._do(arguments_of(command))
                    done += 1
        return done

    def _do(self, words: list[str]) -> None:
        if words[1] != "run_sweep.py":
            self._in_a_process([sys.executable, *words[1:]])
        elif words[2] == "launch":
            name = parse(words[2:]).params["name"] or read_yaml(Path(words[3]).read_text(), words[3])[0]["name"]
            rest = [word for word in words[2:] if word not in ("--scale", "smoke")]
            self._in_a_process([sys.executable, "run_sweep.py", *rest, "--scale", "smoke", "--name", name])
        elif words[2] in DRIVERS:
            self._in_a_process([sys.executable, *words[1:]])
        else:
            # figures of the smoke scale mean nothing: any will do
            self._in_this_process([re.sub(r">=[\d.]+", ">=0", word) for word in words[2:]])

    def _in_a_process(self, command: list[str]) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"

    def _in_this_process(self, words: list[str]) -> None:
        self._monkeypatch.setattr(sys, "argv", ["run_sweep.py", *words])
        with pytest.raises(SystemExit) as ended:
            run_sweep.main()
        printed = self._capsys.readouterr()
        assert not ended.value.code, f"{' '.join(words)}\n{printed.out}{printed.err}"
        assert printed.out.strip(), f"{' '.join(words)} printed nothing"


@pytest.fixture
def reader(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(tmp_path, capsys, monkeypatch)


@pytest.mark.ray
@pytest.mark.parametrize("page", RUN_FAST)
def test_what_a_newcomers_page_says_can_be_done(page: str, reader: Reader) -> None:
    assert reader.follow(page, slowly=False)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("page", RUN_SLOWLY)
def test_what_a_page_says_can_be_done_to_its_end(page: str, reader: Reader) -> None:
    assert reader.follow(page, slowly=True)


def test_blocks_that_are_run_are_on_pages_that_are_run() -> None:
    assert {block.page for block in BLOCKS if block.decision.startswith("run")} <= set(RUN_SLOWLY)
    assert {block.page for block in BLOCKS if block.decision == "run"} <= set(RUN_FAST)
