"""The page itself: sections of HTML around the charts, in one file that needs no network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.files import replaced_at_once
from bert_toolkit.health.finding_html import finding_html
from bert_toolkit.health.findings_file import Case
from bert_toolkit.run_page import charts
from bert_toolkit.run_page.comparison import CLEARLY, differing_settings, partings
from bert_toolkit.run_page.run_files import RunFiles, read_run

CLASSES_SHOWN = 30
UPDATE_RATIO = "‖update‖ / ‖parameter‖"
NOT_FACTS = ("command", "versions", "log_history", "training_health_findings", "training health")


def write_run_page(run: str | Path, other: str | Path | None = None, output: str | Path | None = None) -> Path:
    """Write the page of a run, or of two side by side.

    It shows the verdict and the findings of training health, loss, learning rate and scores over the steps, gradients
    and updates of every layer, what a recipe has predicted, and data, settings, versions and command. It reads what
    the run has left, which may still go on. The file is about 2 MB, most of it plotly.js.

    Args:
        run: Output directory of a run.
        other: That of another, to compare with.
        output: File to write; `report.html` in the directory of the run if None.

    Returns:
        The file.

    Raises:
        InputError: A folder holds no file of a run, plotly is not installed, or the file cannot be written.
    """
    check_plotly()
    runs = [read_run(Path(folder).expanduser()) for folder in (run, other) if folder is not None]
    path = Path(run).expanduser() / "report.html" if output is None else Path(output).expanduser()
    text = page_of(runs)
    try:
        with replaced_at_once(path) as partial:
            # what of a file's name is no text in UTF-8 is shown by its code
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"the page {path} cannot be written ({reason_of(error)}); pass another --output") from error
    return path


def check_plotly() -> None:
    """Refuse to go on without plotly.

    Raises:
        InputError: It is not installed.
    """
    if find_spec("plotly") is None:
        raise InputError('the page of a run draws with plotly, which is not installed: pip install "plotly>=5.24"')


def page_of(runs: Sequence[RunFiles]) -> str:
    """Return the page as HTML.

    Args:
        runs: A run, or two to compare.

    Returns:
        The whole document.
    """
    drawn: dict[str, charts.Chart] = {}

    def figure(chart: charts.Chart | None) -> str:
        if chart is None:
            return ""
        name = f"chart-{len(drawn)}"
        drawn[name] = chart
        return f'<figure data-chart="{name}"></figure>'

    contents = {
        "Findings": _findings(runs),
        "Comparison": _comparison(runs),
        "Curves": _curves(runs, figure),
        "Layers": _layers(runs, figure),
        "Scores": _pair([_scores(run, figure) for run in runs], runs),
        "Predictions": _pair([_predictions(run) for run in runs], runs),
        "Data and settings": _pair([_settings(run) for run in runs], runs),
    }
    sections = "\n".join(
        f'<section id="{_anchor(title)}"><h2>{title}</h2>{content}</section>'
        for title, content in contents.items()
        if content
    )
    links = " ".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, content in contents.items() if content)
    names = " and ".join(escape(str(run.folder.resolve().name)) for run in runs)
    return _document(f"{names} · bert_toolkit", f"{_header(names, runs)}<nav>{links}</nav>\n{sections}", drawn)


def _document(title: str, body: str, drawn: Mapping[str, charts.Chart]) -> str:
    from plotly.offline import get_plotlyjs

    place = files("bert_toolkit.run_page")
    script, style = (place.joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    # mtime: the same run gives the same page
    plotly = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    data = json.dumps(drawn, allow_nan=False)
    for sign in "<>&":  # nothing in it may end the element that holds it
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Only this script and what it unpacks may run, and nothing may be fetched, whatever stood in the files of the run
    policy = f"default-src 'none'; script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; img-src data: blob:"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="charts">{data}</script>
<script type="text/plain" id="plotly">{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _header(names: str, runs: Sequence[RunFiles]) -> str:
    parts = [f"<h1>{names}</h1>"]
    for run in runs:
        faults = [case for case in run.cases if case.finding.severity != "note"]
        whose = f"<strong>{escape(run.folder.resolve().name)}</strong>: " if len(runs) > 1 else ""
        if run.findings is None:
            kind, verdict = "", "Training health was not watched."
        else:
            kind = "bad" if faults else "good"
            verdict = run.findings.verdict or f"Training health: the run goes on; {len(faults)} faults so far."
        parts.append(f'<p class="verdict {kind}">{whose}{escape(verdict)}</p>')
        if run.predictions is not None and (label := run.predictions.only_class) is not None:
            learned = f"Every row was predicted as {label!r}: the model has learned nothing."
            parts.append(f'<p class="verdict bad">{whose}{escape(learned)}</p>')
        parts += [f'<p class="verdict bad">Not shown: {escape(line)}</p>' for line in run.unread]
    return "\n".join(parts)


def _findings(runs: Sequence[RunFiles]) -> str:
    if all(run.findings is None for run in runs):
        return (
            "<p>Nobody looked for faults. <code>bert_toolkit.watch(trainer)</code> or "
            "<code>TrainingHealthCallback()</code> does.</p>"
        )
    blocks = ["".join(_finding(case, run.all_cases) for case in run.cases) for run in runs]
    return _pair([block or "<p>No fault was found in the training.</p>" for block in blocks], runs)


def _finding(case: Case, others: Sequence[Case]) -> str:
    explained = [other.finding.rule for other in others if other.symptom_of == case.finding.rule]
    return finding_html(case.finding, explained, case.last_step)


def _comparison(runs: Sequence[RunFiles]) -> str:
    if len(runs) < 2:
        return ""
    one, other = runs
    heads = [escape(run.folder.resolve().name) for run in runs]
    differing = [(escape(name), *map(escape, values)) for name, values in differing_settings(one, other).items()]
    settings = _table(["", *heads], differing) if differing else "<p>No setting differs that the runs tell.</p>"
    rows = []
    found = partings(one, other)
    equal = [escape(item.name) for item in found if item.first is None]
    for item in (item for item in found if item.first is not None):
        steps = ["never" if step is None else f"{step:g}" for step in (item.first, item.clearly)]
        values = ["", ""] if item.values is None else [f"{value:.6g}" for value in item.values]
        rows.append((escape(item.name), *steps, *values))
    columns = ["number", "differs from step", f"by more than {CLEARLY:.0%} from step", *heads]
    parted = _table(columns, rows, numbers_from=1) if rows else ""
    parted += f"<p>Never: {', '.join(equal)}.</p>" if equal else ""
    parted = parted or "<p>No number was logged at the same step of both.</p>"
    return f"<h3>Settings that differ</h3>{settings}<h3>Where the numbers part</h3>{parted}"


def _curves(runs: Sequence[RunFiles], figure: Callable[[charts.Chart | None], str]) -> str:
    logged = list(dict.fromkeys(name for run in runs for name in run.logged))
    losses = {"loss": "training", "eval_loss": "evaluation"}
    # what a model scores, not how fast
    scores = {
        name: name.removeprefix("eval_").replace("_", " ")
        for name in logged
        if name.startswith("eval_") and name not in losses and not name.endswith(("_runtime", "_per_second"))
    }
    drawn = {
        "Loss": figure(charts.curves(runs, losses, "loss")),
        "Learning rate": figure(charts.curves(runs, {"learning_rate": "learning rate"}, "learning rate")),
        "Evaluation": figure(charts.curves(runs, scores, "score")),
        "Gradient norm before clipping": figure(charts.curves(runs, {"grad_norm": "gradient norm"}, "norm", True)),
    }
    shown = "".join(f"<div><h3>{title}</h3>{chart}</div>" for title, chart in drawn.items() if chart)
    return f'<div class="pair">{shown}</div>' if shown else ""


def _layers(runs: Sequence[RunFiles], figure: Callable[[charts.Chart | None], str]) -> str:
    parts = []
    gradients = [
        figure(charts.heat_map(run.gradients, run.cases, "mean |gradient|")) if run.gradients else "" for run in runs
    ]
    updates = [figure(charts.heat_map(run.updates, run.cases, UPDATE_RATIO)) if run.updates else "" for run in runs]
    if any(gradients):
        text = "Mean |gradient| of each layer's weights at each sample, after clipping. Gray: zero, or no gradient."
        parts.append(f"<h3>Gradient flow</h3><p class='soft'>{text}</p>{_pair(gradients, runs)}")
    if any(updates):
        text = f"{UPDATE_RATIO} of each layer's weights at each sample. Gray: nothing moved, or no update was seen."
        parts.append(f"<h3>Update ratios</h3><p class='soft'>{text}</p>{_pair(updates, runs)}")
    return "".join(parts)


def _scores(run: RunFiles, figure: Callable[[charts.Chart | None], str]) -> str:
    numbers = {name: value for name, value in run.results.items() if _is_number(value)}
    parts = (
        [_table(["", ""], [(escape(name), f"{value:.6g}") for name, value in numbers.items()], 1)] if numbers else []
    )
    by_batch = run.results.get("matthews_correlation_by_batch")
    if isinstance(by_batch, list) and by_batch and all(map(_is_number, by_batch)):
        total = numbers.get("matthews_correlation")
        chart = charts.bars(by_batch, total, "Matthews correlation")
        parts.append(f"<h3>Matthews correlation of each test batch</h3>{figure(chart)}")
        if total is not None:
            parts.append(f"<p class='soft'>The line is that of all rows together: {total:.4f}.</p>")
    by_class = run.results.get("classes")
    if isinstance(by_class, dict) and by_class and all(isinstance(scores, dict) for scores in by_class.values()):
        columns = list(dict.fromkeys(name for scores in by_class.values() for name in scores))
        rows = [
            (escape(name), *(escape(_short(scores.get(column))) for column in columns))
            for name, scores in list(by_class.items())[:CLASSES_SHOWN]
        ]
        left_out = _left_out(len(by_class))
        parts.append(f"<h3>Scores by class</h3>{_table(['class', *map(escape, columns)], rows, 1)}{left_out}")
    return "".join(parts)


def _predictions(run: RunFiles) -> str:
    predictions = run.predictions
    if predictions is None:
        return ""
    parts = [f"<p>{predictions.rows:,} test rows</p>"]
    if predictions.wrong is not None:
        parts = [
            f"<p>{predictions.wrong:,} of {predictions.rows:,} test rows are predicted otherwise than labeled.</p>"
        ]
    if predictions.counts:
        parts.append(f"<h3>Confusion matrix</h3>{_confusion_matrix(predictions.counts)}")
    if predictions.worst:
        columns = list(predictions.worst[0])
        cells = [[escape(row[column]) for column in columns] for row in predictions.worst]
        parts.append(f"<h3>Worst predicted rows, {predictions.order}</h3>{_table(map(escape, columns), cells)}")
    return "".join(parts)


def _confusion_matrix(counts: Mapping[tuple[str, str], int]) -> str:
    rows_of: dict[str, int] = {}
    for (true, predicted), count in counts.items():
        rows_of[true] = rows_of.get(true, 0) + count
        rows_of.setdefault(predicted, 0)
    shown = sorted(sorted(rows_of, key=lambda name: -rows_of[name])[:CLASSES_SHOWN])
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in shown)
    body = []
    for true in shown:
        cells = []
        for predicted in shown:
            count = counts.get((true, predicted), 0)
            fraction = count / max(1, rows_of[true])
            ink = "white" if fraction > 0.55 else "inherit"
            color = f"background: rgba(53, 102, 165, {fraction:.3f}); color: {ink}"
            cells.append(f'<td style="{color}" title="{fraction:.1%} of the class">{count:,}</td>')
        body.append(f"<tr><th>{escape(true)}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th>true ↓ predicted →</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{_left_out(len(rows_of))}"
    )


def _settings(run: RunFiles) -> str:
    facts = {
        name: value
        for name, value in run.results.items()
        if isinstance(value, str) and name not in NOT_FACTS and value
    }
    parts = []
    if facts:
        parts.append(_table(["", ""], [(escape(name), escape(value)) for name, value in facts.items()]))
    if run.command:
        parts.append(f"<h3>Command</h3><p><code>{escape(run.command)}</code></p>")
    if run.versions:
        rows = [(escape(str(name)), escape(str(version))) for name, version in run.versions.items()]
        parts.append(f"<h3>Versions</h3>{_table(['package', 'version'], rows)}")
    if run.record.settings:
        rows = [(escape(name), escape(str(value))) for name, value in sorted(run.record.settings.items())]
        count = len(rows)
        table = _table(["argument", "value"], rows)
        parts.append(f"<details><summary>{count} arguments of Trainer</summary>{table}</details>")
    return "".join(parts)


def _pair(contents: Sequence[str], runs: Sequence[RunFiles]) -> str:
    """The content of one run as it is, that of two side by side under their names; nothing where there is none."""
    if len(runs) == 1 or not any(contents):
        return contents[0]
    return (
        '<div class="pair">'
        + "".join(
            f"<div><h3>{escape(run.folder.resolve().name)}</h3>{content or '<p>nothing</p>'}</div>"
            for run, content in zip(runs, contents, strict=True)
        )
        + "</div>"
    )


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]], numbers_from: int | None = None) -> str:
    """A table of cells that are HTML already; columns from `numbers_from` on stand to the right."""

    def row(tag: str, cells: Iterable[str]) -> str:
        kinds = ((cell, numbers_from is not None and at >= numbers_from) for at, cell in enumerate(cells))
        return "".join(f"<{tag}{' class=number' if is_number else ''}>{cell}</{tag}>" for cell, is_number in kinds)

    heads = list(columns)
    head = f"<thead><tr>{row('th', heads)}</tr></thead>" if any(heads) else ""
    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _left_out(classes: int) -> str:
    return f"<p class='soft'>{CLASSES_SHOWN} of {classes} classes</p>" if classes > CLASSES_SHOWN else ""


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
