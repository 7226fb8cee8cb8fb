"""``rarvision fit``: mix, gate and "unknown", fitted on a memory for the ranker in use."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rarvision.cli import models, options
from rarvision.cli.output import echo_json, print_table, progress, say
from rarvision.cli.path import PathOptions, spread
from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.calibration import RankerFit

__all__ = ["fit"]


@spread
def fit(
    *,
    path: PathOptions,
    images: Annotated[
        int, typer.Option("--images", min=1, help="Images of the memory to leave out; half as many are foreign ones.")
    ] = 400,
    foreign: Annotated[
        float,
        typer.Option("--foreign", metavar="SHARE", help="Share of images of unknown categories to expect in use."),
    ] = 0.02,
    accepted: Annotated[
        float,
        typer.Option("--accepted", metavar="SHARE", help="Share of the known images that is not to be called unknown."),
    ] = 0.95,
    keep_gain: Annotated[
        float,
        typer.Option("--keep-gain", metavar="SHARE", help="Share of the ranker's gain that a gate is to keep."),
    ] = 0.99,
    sure_accuracy: Annotated[
        float,
        typer.Option(
            "--sure-accuracy",
            metavar="SHARE",
            help="With --taxonomy: share of the sure answers, at whatever level, that is to be right.",
        ),
    ] = 0.95,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice of images.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Keep the ranker's answers; given again, goes on with it."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw accuracy against calls (.png or .svg).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, but keep nothing with the memory.")] = False,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Fit how retrieval and the ranker are mixed, when the ranker is not needed, and what is unknown.

    The memory's own images are asked about, each left out of the memory: no labels beyond the memory's are needed. The
    fit is kept with the memory; `recognize` and `evaluate` with the same ranker and the same way of retrieving find it
    there. Add images or names, and the fit is used on, but called stale: fit again.

    \b
    Examples:
      rarvision fit --memory pets.memory --ranker http://localhost:8000/v1
      rarvision recognize photos/ -m pets.memory -r http://localhost:8000/v1 --gate auto --unknown auto
      rarvision fit -m pets.memory -r http://localhost:8000/v1 --taxonomy breeds.csv    # then --sure auto
      rarvision fit -m pets.memory -r llava-hf/llava-1.5-7b-hf --strategy choice --output answers.jsonl --plot gate.svg

    \b
    --json prints one object: key, memory_content, mixed, alone (parameters with and without the ranker), mix
      (retrieval, ranker, mixed: shares of the images whose category was retrieved; log_loss, default_log_loss: nats;
      status), asked, missing, gate, gate_reason, curve,
      measures, sure (taxonomy, threshold, target, accuracy, answered, images), sure_reason, settings, version
    """
    from rarvision.fitting import fit_recognizer
    from rarvision.judging import keep_fit

    models.set_max_pixels(path.max_pixels)
    path = _for_fitting(path)
    if plot:
        from rarvision.plots import check_plot

        check_plot(plot)
    with models.open_recognizer(path) as recognizer, progress("Asking", total=None, quiet=quiet) as bar:
        found = fit_recognizer(
            recognizer,
            images=images,
            foreign_share=foreign,
            accepted=accepted,
            target=keep_gain,
            sure_accuracy=sure_accuracy,
            seed=seed,
            keep=False,
            out=output,
            progress=lambda done, _all: bar.to(done),
        )
        if json:
            echo_json(found.to_dict())
        else:
            print_table(("", ""), _rows(found, tree=path.taxonomy is not None))
        if not dry_run:
            keep_fit(recognizer.memory, found)
    say("nothing was kept (--dry-run)" if dry_run else f"kept with {path.memory} for this ranker and retrieval")
    if plot:
        from rarvision.plots import plot_gate

        plot_gate(found, plot)


def _for_fitting(path: PathOptions) -> PathOptions:
    """The options without an older fit; refuses what fitting finds by itself, or would ignore."""
    usual = {item.name: item.default for item in fields(PathOptions)}
    for name in ("gate", "unknown", "ranker_weight", "calibration", "sure"):
        if getattr(path, name) != usual[name]:
            raise OptionError(f"--{name.replace('_', '-')} does not go with fit, which finds it: leave it out")
    if path.repeats:
        raise OptionError("--repeats does not go with fit: images are left out for different categories only")
    if path.debias is not None and not Path(path.debias).is_file():
        raise OptionError(
            f"--debias {path.debias}: fit takes a prior that is there already: a FILE that `recognize` or `evaluate` "
            "with --debias FILE wrote"
        )
    return replace(path, fit=False)


def _rows(found: RankerFit, *, tree: bool) -> list[tuple[str, str]]:
    mix, measures = found.mix, found.measures
    rows = [("status", _STATUS[mix.status]), ("questions answered", f"{found.asked:,}")]
    if found.missing:
        rows.append(("questions without an image", f"{found.missing:,}"))
    rows.append(("images whose category was retrieved", f"{mix.images:,}"))
    if mix.placed:
        rows.append(("images whose category was put in", f"{mix.placed:,}"))
    if mix.retrieval is not None:
        rows.append(("of these, retrieval right", f"{mix.retrieval:.1%}"))
    if mix.ranker is not None and found.settings.get("ranker") is not None:
        rows += [("of these, ranker right", f"{mix.ranker:.1%}"), ("weight", f"{found.mixed.ranker_weight:.2f}")]
        if mix.mixed is not None:
            rows.append(("of these, both right", f"{mix.mixed:.1%} (cross-fitted)"))
    if "calibration_error" in measures:
        before = measures["default_calibration_error"]
        rows.append(("calibration error", f"{measures['calibration_error']:.3f} ({before:.3f} before)"))
    if "auroc_foreign" in measures:
        before, alone = (measures[f"{name}_auroc_foreign"] for name in ("default", "alone"))
        text = f"{measures['auroc_foreign']:.3f} ({before:.3f} before, {alone:.3f} by retrieval alone)"
        rows.append(("AUROC of unknown", text))
    if found.gate is not None:
        kept = f"{found.gate.gain_kept:.1%} of the gain"
        rows.append(("gate", f"asks about {found.gate.call_rate:.0%} of the images, keeps {kept}"))
    if found.gate_reason is not None and found.settings.get("ranker") is not None:
        rows.append(("gate", found.gate_reason))
    return [*rows, *(_sure_rows(found) if tree else ())]


def _sure_rows(found: RankerFit) -> list[tuple[str, str]]:
    if found.sure is None:
        return [("sure", f"no threshold: {found.sure_reason}")]
    right = "" if found.sure.accuracy is None else f", {found.sure.accuracy:.1%} of them right"
    told = f"{found.sure.answered:.1%} of the images{right} (cross-fitted)"
    return [(f"sure from {found.sure.threshold:.1%} on", told)]


_STATUS = {
    "fitted": "fitted",
    "partial": "partial: most categories have one image, which cannot be left out",
    "unfitted": "not fitted: no image could be asked about; the shipped parameters hold",
}
