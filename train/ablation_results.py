"""The results of `ablation.py`: a file of lines for each seed, their tables, and their curves as a picture.

python train/ablation_results.py out/ablation                           # the tables, in Markdown
python train/ablation_results.py out/ablation --picture out/curves.png
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videollava_jax.assets.world import CLIP_KINDS, IMAGE_KINDS

TOWERS = ("aligned", "unaligned")
DATA = {"images": ("images",), "clips": ("clips",), "both": ("images", "clips")}
"""The media that a condition is trained on."""
KINDS = {"images": IMAGE_KINDS, "clips": CLIP_KINDS}
Found = dict[tuple[str, str], dict[int, dict[str, Any]]]
"""Lines of results by towers and data, and there by seed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, and draws the curves where a picture is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the directory that was given to ablation.py")
    parser.add_argument("--picture", type=Path, help="a PNG or SVG file for the curves")
    given = parser.parse_args(arguments)
    lines = read_all(given.out)
    print(tables(lines))
    if given.picture is not None:
        draw_curves(by_condition(lines), given.picture)


# ── the files ───────────────────────────────────────────────────────────────────────────────────────────────


def results_of(out: Path, seed: int) -> Path:
    """Returns the file of a seed's lines, one for every finished condition."""
    return out / "results" / f"{seed}.jsonl"


def read_all(out: Path) -> list[dict[str, Any]]:
    """Reads the lines of all seeds."""
    return [line for file in sorted(out.glob("results/*.jsonl")) for line in read(file)]


def append(results: Path, line: dict[str, Any]) -> None:
    """Appends a line, whole or not at all."""
    results.parent.mkdir(exist_ok=True)
    unfinished = results.with_suffix(".new")
    with unfinished.open("w") as file:
        file.write("".join(json.dumps(each) + "\n" for each in [*read(results), line]))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, results)


def read(results: Path) -> list[dict[str, Any]]:
    """Reads the lines of a seed; none where there is no file."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def by_condition(lines: Sequence[dict[str, Any]]) -> Found:
    """Sorts lines by condition and seed."""
    found: Found = {(towers, data): {} for towers in TOWERS for data in DATA}
    for line in lines:
        found[line["towers"], line["data"]][line["seed"]] = line
    return found


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────


def right(counts: dict[str, list[int]]) -> float:
    """Returns the percentage of right answers over all kinds."""
    got, asked = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    return 100 * got / asked


def spread(values: Sequence[float], sign: str = "") -> str:
    """Formats values as mean ± standard deviation; one value as itself, none as a dash."""
    if not values:
        return "–"
    mean = format(statistics.mean(values), f"{sign}.1f")
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """Returns the tables in Markdown: answers, differences, curves, kinds, towers."""
    if not lines:
        return "no condition is finished yet"
    found = by_condition(lines)
    return "\n\n".join(
        [
            "Right answers about unseen media, % (in brackets: about a medium that it was not trained on)",
            answers_table(found),
            "Differences in points, each seed with itself",
            differences_table(found),
            "Means at each number of steps, and the last change",
            curves_table(found),
            "By kind of question, %",
            kinds_table(found),
            "The video towers: patches of unseen clips that are named right, %",
            towers_table(lines),
        ]
    )


def final(lines: dict[int, dict[str, Any]], medium: str) -> dict[int, float]:
    """Returns, by seed, the percentage of right answers about a medium at the last point."""
    return {seed: right(line["curve"][-1][medium]) for seed, line in lines.items()}


def bracketed(text: str, data: str, medium: str) -> str:
    """Puts a number about a medium that the condition was not trained on into brackets."""
    return text if medium in DATA[data] else f"({text})"


def answers_table(found: Found) -> str:
    """Returns the table of right answers by condition and medium."""
    rows = []
    for (towers, data), lines in found.items():
        shares = {medium: spread(list(final(lines, medium).values())) for medium in KINDS}
        cells = [bracketed(share, data, medium) for medium, share in shares.items()]
        rows.append([towers, data, *cells, str(len(lines))])
    return as_markdown(("towers", "trained on", *KINDS, "seeds"), rows)


def differences_table(found: Found) -> str:
    """Returns the table of differences between conditions, seed by seed."""
    rows = []
    for what, medium, (plus, minus) in comparisons():
        a, b = final(found[plus], medium), final(found[minus], medium)
        pairs = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
        rows.append([what, medium, spread(pairs, "+"), f"{sum(pair > 0 for pair in pairs)} of {len(pairs)}"])
    return as_markdown(("difference", "asked about", "points", "seeds above zero"), rows)


def curves_table(found: Found) -> str:
    """Returns the table of means at every point, and of the last change."""
    points = next(line["curve"] for lines in found.values() for line in lines.values())
    steps = [str(point["step"]) for point in points]
    rows = []
    for (towers, data), lines in found.items():
        for medium in DATA[data] if lines else ():
            curves = [[right(point[medium]) for point in line["curve"]] for line in lines.values()]
            means = [f"{statistics.mean(values):.1f}" for values in zip(*curves, strict=True)]
            rows.append([towers, data, medium, *means, spread([curve[-1] - curve[-2] for curve in curves], "+")])
    return as_markdown(("towers", "trained on", "asked about", *steps, "last change"), rows)


def kinds_table(found: Found) -> str:
    """Returns the table of right answers by kind of question."""
    rows = []
    for ((towers, data), lines), medium in itertools.product(found.items(), KINDS):
        ends = [line["curve"][-1][medium] for line in lines.values()]
        shares = [spread([right({kind: end[kind]}) for end in ends if kind in end]) for kind in CLIP_KINDS]
        rows.append([towers, data, medium, *(bracketed(share, data, medium) for share in shares)])
    return as_markdown(("towers", "trained on", "asked about", *CLIP_KINDS), rows)


def towers_table(lines: Sequence[dict[str, Any]]) -> str:
    """Returns the table of patches that heads name right, by video tower."""
    rows = []
    for towers in TOWERS:
        readings = {line["seed"]: line["patches"] for line in lines if line["towers"] == towers}.values()
        shares = [spread([100 * reading[heads] for reading in readings]) for heads in ("own", "image")]
        rows.append([towers, *shares, str(len(readings))])
    return as_markdown(("video tower", "by its own heads", "by the image tower's heads", "seeds"), rows)


def comparisons() -> list[tuple[str, str, tuple[tuple[str, str], tuple[str, str]]]]:
    """Returns the comparisons: the name, the medium asked about, and the two conditions."""
    alignment = [
        (f"aligned − unaligned, trained on {data}", medium, (("aligned", data), ("unaligned", data)))
        for data, medium in itertools.product(reversed(DATA), KINDS)
        if (data, medium) != ("images", "images")  # the video tower has no part in it
    ]
    together = [
        (f"both − {medium} alone, {towers}", medium, ((towers, "both"), (towers, medium)))
        for towers in TOWERS
        for medium in KINDS
    ]
    return alignment + together


# ── curves ──────────────────────────────────────────────────────────────────────────────────────────────────


def draw_curves(found: Found, file: Path) -> None:
    """Draws right answers over steps, a panel for each medium: means over the seeds, with one standard deviation."""
    # Imported here, so that tables need no matplotlib. A Figure opens no window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for panel, medium in zip(panels, KINDS, strict=True):
        for (towers, data), lines in found.items():
            if not lines or medium not in DATA[data]:
                continue
            curves = [line["curve"] for line in lines.values()]
            steps = [point["step"] for point in curves[0]]
            shares = [[right(curve[i][medium]) for curve in curves] for i in range(len(steps))]
            means = [statistics.mean(values) for values in shares]
            spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in shares]
            colour = {"aligned": "tab:blue", "unaligned": "tab:orange"}[towers]
            style, name = ("-", "both media") if data == "both" else ("--", "this medium alone")
            panel.plot(steps, means, style, color=colour, label=f"{towers} towers, {name}")
            low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
            panel.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.set_title(f"Questions about {medium}")
        panel.set_xlabel("steps of projector and decoder")
        panel.grid(alpha=0.3)
    panels[0].set_ylim(top=100)
    entries = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2)
    panels[0].set_ylabel("right answers, %")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
