"""What is not ours is printed as it is: no error of another package, name or path is read as rich's markup."""

import ast
import io
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import scopemill
from scopemill.deploy.catalog.listing import FinishedEntry, finished_table
from scopemill.deploy.catalog.status import PassStatus, SaeStatus, SweepStatus, status_table
from scopemill.deploy.cli import main, options, templates
from scopemill.deploy.console import plain_console
from scopemill.deploy.orchestrator.failures import summary
from scopemill.deploy.orchestrator.schedule import SaeOutcome
from scopemill.deploy.progress import Reporter
from scopemill.proto.errors import ScopemillError

FOREIGN = [
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:456] Connection reset by peer [127.0.0.1]:29021",
    "the value [word] is missing", "[bold red]shout[/bold red]", "[/]", "run[1]", "\\[escaped]", ":smile: a:b:c", "[link=file:///etc]x[/link]",
]  # fmt: skip
ROOT = Path(scopemill.__file__).parent
ROOMS = ("proto", "harvester", "activation_server", "trainer", "evaluator", "deploy")


def calls() -> list[tuple[Path, ast.Call, str]]:
    found = []
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found.append((path, node, node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")))
    return found


def test_every_console_is_a_plain_one_and_nothing_turns_markup_on_again():
    wrong = []
    for path, call, name in calls():
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "Console" and path.name != "console.py":
            wrong.append((path, call.lineno, "take plain_console()"))
        if name == "TextColumn" and options.get("markup") != "False":
            wrong.append((path, call.lineno, "say markup=False"))
        if name in ("from_markup", "rprint", "inspect_markup") or "True" in (options.get("markup"), options.get("emoji")):
            wrong.append((path, call.lineno, "foreign text would be read as markup"))
    assert not wrong
    assert sum(name == "plain_console" for _, _, name in calls()) >= 3, "the scan finds them"


def test_no_text_of_ours_is_written_in_markup():
    written = [
        (path, node.lineno)
        for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.search(r"\[/?(bold|dim|red|green|italic)\b[^\]]*\]", node.value)
    ]
    assert not written


@pytest.fixture
def shown(monkeypatch):
    """What is printed from here on, on a terminal and in a log."""
    consoles = [plain_console(io.StringIO(), width=400), plain_console(io.StringIO(), width=400)]
    consoles[0]._force_terminal = True

    def show(draw) -> str:
        for console in consoles:
            draw(console)
        return "".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()) for console in consoles)

    return show


def phases(text: str):
    def draw(console) -> None:
        reporter = Reporter(console)
        reporter.say(text)
        with reporter.phase(text, {text: 3}):
            reporter.update(text, 2, text)

    return draw


DRAWN = {
    "reporter": phases,
    "outcomes of training": lambda text: lambda console: console.print(summary({text: SaeOutcome("failed", 1, text)})),
    "finished SAEs": lambda text: lambda console: console.print(finished_table([FinishedEntry(text, None)])),
    "status": lambda text: (
        lambda console: console.print(
            status_table(SweepStatus(text, [PassStatus(text, 1, 2)], [SaeStatus(text, text, 1, 2, False, None, [], None)]))
        )
    ),
}


@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize("drawn", DRAWN)
def test_foreign_text_is_shown_letter_by_letter(shown, drawn, text):
    said = shown(DRAWN[drawn](text))
    assert said.count(text) >= 2, said


@pytest.mark.parametrize("text", FOREIGN)
def test_lines_facts_and_errors_of_commands_are_shown_letter_by_letter(monkeypatch, capsys, text):
    monkeypatch.setattr(options, "console", plain_console(width=400))
    options.print_line(text)
    options.print_facts({text: text})
    monkeypatch.setattr(main, "app", lambda: (_ for _ in ()).throw(ScopemillError(text)))
    monkeypatch.setattr(main.run, "heed_signals", lambda: None)
    with pytest.raises(SystemExit):
        main.main()
    said = capsys.readouterr()
    assert said.out.count(text) == 3 and said.err.count(text) == 1


@pytest.mark.parametrize("text", FOREIGN)
def test_a_template_that_speaks_in_brackets_is_listed(monkeypatch, tmp_path, text):
    monkeypatch.setenv("SCOPEMILL_TEMPLATES", str(tmp_path))
    monkeypatch.setattr(templates, "console", plain_console(width=400))
    from scopemill.trainer.config.templates import Template, save_template

    save_template(Template("mine", text, {"architecture": "topk"}, own=True))
    listed = CliRunner().invoke(templates.templates_app, ["list"])
    assert listed.exit_code == 0 and text in listed.output
