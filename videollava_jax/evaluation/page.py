"""An HTML page of the worst, the best and the changed answers with their frames, in one file."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.digests import json_digest
from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.report import counts_in_words

SHOWN = 12
"""How many questions of each kind are shown."""
_FRAMES, _HEIGHT = 4, 112
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.15rem .8rem;text-align:left;border-bottom:1px solid #ddd}
article{border:1px solid #ddd;border-radius:6px;padding:.7rem 1rem;margin:.8rem 0}
img{height:112px;margin-right:4px;border-radius:3px}p{margin:.25rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
.right{color:#14622c}.wrong{color:#9b1c1c}small{color:#595959}
"""

Frames = Callable[[Question], list[str]]
"""Returns the frames of a question's media, as data: URLs."""


def frames_of(root: Path) -> Frames:
    """Returns what reads frames from a task's directory; a medium that cannot be read has none."""

    def read(question: Question) -> list[str]:
        from videollava_jax.media import FrameSampling, Uniform, Within, open_medium

        rule: FrameSampling = Uniform(_FRAMES)
        if question.span is not None:
            rule = Within(*question.span, rule)
        urls = []
        for _, source in question.media:
            try:
                data = source.startswith("data:")
                given = base64.b64decode(source.partition(",")[2]) if data else str(root / source)
                frames = open_medium(given, rule).frames
            except (ValueError, OSError):  # what is wrong with it is in the answer's record
                continue
            urls += [_thumbnail(frame) for frame in frames]
        return urls

    return read


def _thumbnail(frame: Any) -> str:
    from PIL import Image

    image = Image.fromarray(frame)
    image = image.resize((max(1, round(image.width * _HEIGHT / image.height)), _HEIGHT))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def ranked(records: Iterable[Mapping[str, Any]], *, best: bool) -> list[Mapping[str, Any]]:
    """Returns the records with the highest or the lowest scores; equal ones in an order that no name decides."""
    sign = -1 if best else 1
    return sorted(records, key=lambda record: (sign * record["score"], json_digest(record["id"])))[:SHOWN]


def score_page(
    report: Mapping[str, Any], records: Sequence[Mapping[str, Any]], questions: Mapping[str, Question], frames: Frames
) -> str:
    """Returns the page of a scored run: its metrics, categories and settings, the worst and the best answers."""
    known = report["score"] is not None
    parts = [_metrics(report)]
    if report["categories"]:
        parts.append(_categories(report))
    if known:
        wrong = [record for record in records if record["score"] < 1]
        right = [record for record in records if record["score"] > 0]
        for title, found in (("Worst", ranked(wrong, best=False)), ("Best", ranked(right, best=True))):
            parts.append(f"<h2>{title} answers</h2>")
            parts += [_article(questions[str(record["id"])], [("answer", record)], frames) for record in found]
    parts.append(f"<h2>Settings</h2><pre>{html.escape(json.dumps(report['settings'], indent=1))}</pre>")
    return _page(report["title"], parts)


def comparison_page(
    found: Mapping[str, Any],
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    questions: Mapping[str, Question],
    frames: Frames,
) -> str:
    """Returns the page of a comparison: its metrics, and the answers that changed most."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{row['a']:.2f}</td><td>{row['b']:.2f}</td>"
        f"<td>{row['difference']['value']:+.2f}</td><td>{row['difference']['low']:+.2f} to "
        f"{row['difference']['high']:+.2f}</td><td>{row['difference']['p']:.3f}</td></tr>"
        for name, row in found["metrics"].items()
    )
    head = "<tr><th>metric</th><th>A</th><th>B</th><th>B − A</th><th>95 %</th><th>p</th></tr>"
    parts = [f"<p>A: {html.escape(found['a'])}\nB: {html.escape(found['b'])}</p><table>{head}{rows}</table>"]
    parts.append(f"<h2>Changed answers</h2><p>{found['answers_that_differ']} of {found['questions']}</p>")
    for one, two in pairs[:SHOWN]:
        parts.append(_article(questions[str(one["id"])], [("A", one), ("B", two)], frames))
    return _page(f"Comparison: {found['task']}", parts)


def _metrics(report: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{row['value']:.2f}</td><td>{row['low']:.2f} to {row['high']:.2f}</td>"
        f"<td>{report['paper'].get(name, '')}</td></tr>"
        for name, row in report["metrics"].items()
    )
    rows += "".join(
        f"<tr><th>{html.escape(name)}</th><td>not scored here</td><td></td><td>{figure}</td></tr>"
        for name, figure in report["paper"].items()
        if name not in report["metrics"]
    )
    counts = counts_in_words(report["counts"])
    head = "<tr><th>metric</th><th>score</th><th>95 %</th><th>paper</th></tr>"
    return f"<p>{html.escape(counts)}\n{html.escape(report['note'])}</p><table>{head}{rows}</table>"


def _categories(report: Mapping[str, Any]) -> str:
    tables = []
    for kind, found in report["categories"].items():
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{row['units']}</td><td>{row.get(report['metric'], 0):.2f}</td></tr>"
            for name, row in found.items()
        )
        head = f"<tr><th>{html.escape(kind)}</th><th>units</th><th>{html.escape(report['metric'])}</th></tr>"
        tables.append(f"<table>{head}{rows}</table>")
    return f"<h2>Categories</h2>{'<br>'.join(tables)}"


def _article(question: Question, answers: Sequence[tuple[str, Mapping[str, Any]]], frames: Frames) -> str:
    images = "".join(f'<img src="{url}" alt="">' for url in frames(question))
    expected = question.target
    if isinstance(expected, list):
        expected = ", ".join(dict.fromkeys(map(str, expected)))
    elif isinstance(expected, bool):
        expected = "yes" if expected else "no"
    said = "".join(
        f'<p class="{"right" if record["score"] >= 0.5 else "wrong"}">{label}: '
        f"{html.escape(record['answer'] if record['answer'] is not None else record['error'] or 'none')} "
        f"<small>({record['score']:g})</small></p>"
        for label, record in answers
    )
    return (
        f"<article>{images}<p>{html.escape(question.text)}</p>{said}<p>expected: {html.escape(str(expected))} "
        f"<small>{html.escape(question.id)}</small></p></article>"
    )


def _page(title: str, parts: Iterable[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
