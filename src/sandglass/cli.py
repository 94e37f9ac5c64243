"""The `sandglass` command: parse, call, exit code. Imports nothing heavy before it is needed."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from sandglass.errors import Exit, Problem

app = typer.Typer(
    help="Self-supervised pretraining and judging of hierarchical vision transformers on small image sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ParamsFile = Annotated[Path, typer.Option("--params", help="The settings file.")]
Root = Annotated[Path, typer.Option("--root", help="Where results/, state/ and data/ are.")]
StudyName = Annotated[str | None, typer.Option("--study", help="A study of the settings file; default: its `study`.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Attempt = Annotated[int, typer.Option(help="Which try of a scheduler this is; a later one repeats no lasting error.")]
RunNames = Annotated[list[str] | None, typer.Argument(help="Runs by name; without one, all of this stage.")]

_PARAMS = Path("params.yaml")
_ROOT = Path()


def _read(params: Path, study: str | None) -> tuple[Any, list[Any]]:
    from sandglass.config import load
    from sandglass.study import plan as make

    settings = load(params)
    return settings, make(settings, study)


@app.command()
def plan(
    params: ParamsFile = _PARAMS,
    root: Root = _ROOT,
    study: StudyName = None,
    measured: Annotated[bool, typer.Option("--measure", help="Steps of each unknown training here and now.")] = False,
    as_json: AsJson = False,
) -> None:
    """The runs of a study: stage, run, needs, whether done; and the hours that are left, where runs were measured."""
    from dataclasses import asdict

    from sandglass.forecast import fill, forecast, show
    from sandglass.runs import RunFolder

    settings, runs = _read(params, study)
    done = {r.key: RunFolder(root, r).done() for r in runs}
    costs = forecast(root, [r for r in runs if not done[r.key] and r.stage != "report"])
    if measured:
        from sandglass.measure import minutes_per_epoch

        def measure(run: Any) -> tuple[float, str]:
            print(f"measuring {run.key}", file=sys.stderr, flush=True)
            return minutes_per_epoch(root, run, settings)

        costs = fill(costs, runs, measure)
    rows = [
        {
            "stage": r.stage,
            "run": r.name,
            "needs": list(r.needs),
            "done": done[r.key],
            "result": str(r.result),
            "cost": asdict(cost) if (cost := costs.get(r.key)) else None,
        }
        for r in runs
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        needs = row["needs"] if row["stage"] != "report" else [f"all {len(row['needs'])} above"]
        print(f"{'done' if row['done'] else '-':<5} {row['stage']:<9} {row['run']}")
        if needs:
            print(f"{'':<16}needs {', '.join(needs)}")
    print(f"{len(rows)} runs, {sum(row['done'] for row in rows)} done")
    if costs:
        print(show(costs))


@app.command()
def status(params: ParamsFile = _PARAMS, root: Root = _ROOT, study: StudyName = None, as_json: AsJson = False) -> None:
    """What is done, running, stopped or failed, per stage, and how far those are that run."""
    from dataclasses import asdict

    from sandglass.watch import look, show

    seen = look(root, _read(params, study)[1])
    print(json.dumps([asdict(row) for row in seen], indent=1) if as_json else show(seen))


@app.command()
def watch(
    params: ParamsFile = _PARAMS,
    root: Root = _ROOT,
    study: StudyName = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Between two looks; default: 2, in a log 30.")] = None,
) -> None:
    """`status` that renews itself until all is done: a table on a terminal, else lines whenever they change."""
    from rich.console import Console

    from sandglass import watch as following

    console = Console()
    following.watch(root, _read(params, study)[1], console, seconds or (2 if console.is_terminal else 30))


class _Packs(typer.core.TyperGroup):
    """`sandglass data RUN` is `sandglass data pack RUN`: a stage's verb like the others, with one more thing to do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = args and args[0] in (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, args if known else ["pack", *args])


data = typer.Typer(cls=_Packs, help="Fetch and pack a data set, or look at one before.")
app.add_typer(data, name="data")


def _stage_verb(stage: str, about: str, group: typer.Typer = app, name: str = "") -> None:
    def verb(
        runs: RunNames = None,
        params: ParamsFile = _PARAMS,
        root: Root = _ROOT,
        study: StudyName = None,
        attempt: Attempt = 1,
    ) -> None:
        from sandglass import tracking
        from sandglass.errors import did_you_mean
        from sandglass.stages import execute

        settings, planned = _read(params, study)
        ours = {r.name: r for r in planned if r.stage == stage}
        for name in runs or ours:
            if name not in ours:
                raise Problem(
                    "C-130", Exit.CONFIG, f"no {stage} run '{name}' in this study", fix=did_you_mean(name, ours)
                )
        for name in runs or ours:
            with tracking.mirrored(root):
                execute(ours[name], settings, study or settings.study, root, partial(print, flush=True), attempt)

    group.command(name or stage, help=about)(verb)


_stage_verb("data", "Fetch and pack a data set.", data, "pack")
_stage_verb("pretrain", "Pretrain a backbone.")
_stage_verb("probe", "Judge frozen features.")
_stage_verb("finetune", "Train with labels, from scratch or from pretrained weights.")
_stage_verb("attack", "Attack finetuned models.")
_stage_verb("report", "Write the page and the table of a study.")


@data.command("inspect")
def inspect_(
    source: Annotated[Path, typer.Argument(help="A folder of images, or an archive of one.")], as_json: AsJson = False
) -> int:
    """What is in a folder or an archive of images, and what packing would do with it. Writes nothing."""
    from sandglass.data.inspect import inspect, show

    facts = inspect(source)
    print(json.dumps(facts, indent=1) if as_json else show(facts))
    return int(facts["packing"].get("refused", {}).get("exit", Exit.DONE))


@app.command()
def publish(root: Root = _ROOT) -> None:
    """Bring MLflow up to date with the run folders; safe to repeat."""
    from sandglass import tracking

    print(f"{tracking.publish(root)} runs in {tracking.uri(root)}")


@app.command()
def check(
    backbone: Annotated[str | None, typer.Option(help="One backbone instead of the study's.")] = None,
    size: Annotated[int | None, typer.Option(help="Image size in px.")] = None,
    params: ParamsFile = _PARAMS,
    root: Root = _ROOT,
    study: StudyName = None,
    as_json: AsJson = False,
) -> None:
    """Do backbone, image size, objective, data and batch fit? In seconds, with no GPU and no download.

    Prints the stage grid and the images of each data set, or what does not fit and the nearest legal settings.
    """
    from sandglass import fit
    from sandglass.backbones import grid

    if backbone:
        models, images = [grid.check(backbone, size or 224)], []
    else:
        settings, runs = _read(params, study)
        models = fit.backbones(runs, size)
        fit.objectives(runs, size)
        images = fit.data(runs, settings, root)
    if as_json:
        print(json.dumps({"backbones": models, "data": {row.name: row.counts for row in images}}, indent=1))
        return
    for row in models:
        cost = f"{row['parameters']:,} parameters, {row['macs'] / 1e9:.3f} GMAC an image"
        print(f"{row['backbone']} at {row['size']} px: {cost}")
        for stage, channels, height, width in row["stages"]:
            print(f"  {stage:<24} {channels:>5} x {height} x {width}")
        for warning in row["warnings"]:
            print("  note: " + warning.replace("\n", "\n        "))
    for counted in images:
        print(counted.line())


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A finished pretrain or finetune run.")],
    to: Annotated[Path, typer.Argument(help="A new folder.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="An ONNX file too, compared with the model.")] = False,
    params: ParamsFile = _PARAMS,
    root: Root = _ROOT,
    study: StudyName = None,
) -> None:
    """A model for others: weights as timm loads them, `timm.create_model('local-dir:FOLDER')`, and a model card."""
    from sandglass.export import export as write

    write(root, _read(params, study)[1], run, to, onnx=onnx)
    print(f"timm.create_model('local-dir:{to}')")


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="objectives, backbones, views, datasets, auxiliary, probes or attacks")],
    as_json: AsJson = False,
) -> None:
    """What there is to choose from."""
    from sandglass.backbones import BACKBONES
    from sandglass.config import registers
    from sandglass.errors import did_you_mean

    shelves = {**registers(), "backbones": BACKBONES}
    if what == "datasets":
        from sandglass.data.catalog import about

        rows = about()
    elif what in shelves:
        rows = [shelves[what].about(name) for name in shelves[what]]
    else:
        raise Problem("C-131", Exit.USAGE, f"cannot list '{what}'", fix=did_you_mean(what, [*shelves, "datasets"]))
    if as_json:
        print(json.dumps(rows, indent=1, default=sorted))
        return
    for row in rows:
        print(f"{row['name']:<22} {row['about']}")
    if what == "backbones":
        print("and every timm model by its name")


Packed = Annotated[Path | None, typer.Option("--data", help="A packed data set; default: windows of two photographs.")]

bench = typer.Typer(no_args_is_help=True, help="How fast it is: ratios measured in turns, in results/bench.")
app.add_typer(bench, name="bench")


@bench.command("speed")
def bench_speed(
    cases: Annotated[list[str] | None, typer.Argument(help="Networks at a size; default: all for this device.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="That count; one more warms up.")] = 7,
    steps: Annotated[int | None, typer.Option(min=1, help="That count in each turn; default: the case's.")] = None,
    clock: Annotated[str, typer.Option(help="cpu, wall, or auto: cpu where others use the machine.")] = "auto",
    data: Packed = None,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest case, a minute, eased targets.")] = False,
    root: Root = _ROOT,
) -> int:
    """The training step fed from memory, by lightly and by us: fraction of the ceiling and speed-up."""
    from sandglass.bench import commands

    return commands.speed(root / "results" / "bench", cases or (), rounds, steps, clock, data, quick)


@bench.command("floor")
def bench_floor(data: Packed = None, root: Root = _ROOT) -> int:
    """What the views of an image cost, function by function."""
    from sandglass.bench import commands

    return commands.floor(root / "results" / "bench", data)


@bench.command("start")
def bench_start(repeats: Annotated[int, typer.Option(min=1)] = 5, root: Root = _ROOT) -> int:
    """Seconds from the start of a training job to the data of its first step, and where they go."""
    from sandglass.bench import commands

    return commands.start(root / "results" / "bench", repeats)


@bench.command("parity")
def bench_parity(data: Packed = None, root: Root = _ROOT) -> int:
    """How far batched views are from torchvision's, operation by operation."""
    from sandglass.bench import commands

    return commands.parity(root / "results" / "bench", data)


@bench.command("growth")
def bench_growth(root: Root = _ROOT) -> int:
    """What becomes dearer with more images, runs and epochs, at 1, 4 and 16 times the size."""
    from sandglass.bench import commands

    return commands.growth(root / "results" / "bench")


def main() -> NoReturn:
    """Entry point: every failure is one screen and an exit code."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        code = app(standalone_mode=False)
    except Problem as problem:
        _fail(problem, debug)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        _fail(Problem.of(error), debug)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # the parser's own errors
            print(f"usage: {error.format_message()}\n  fix    sandglass --help", file=sys.stderr)
            sys.exit(Exit.USAGE)
        file = Path("sandglass-crash.txt")
        with contextlib.suppress(OSError):
            file.write_text(traceback.format_exc())
        text = "our fault; please report it with that file"
        _fail(Problem("T-199", Exit.INTERNAL, f"{type(error).__name__}: {error}", where=str(file), fix=text), debug)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(problem: Problem, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(problem.screen(), file=sys.stderr)
    sys.exit(int(problem.exit))


if __name__ == "__main__":
    main()
