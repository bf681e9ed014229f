"""The command line. Bad input: one sentence on standard error, exit code 2; interrupted: exit code 130."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sae_emotions.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parsed = parser().parse_args(arguments)
    try:
        parsed.work(parsed)
    except UserError as error:
        print(f"sae-emotions: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sae-emotions: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="sae-emotions",
        description="Which features of a language model carry which concepts, and do they cause anything?",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, work: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(work=work)
        return made

    one = command("run", _run, "all stages: harvest, train, label, ablate, report; resumes, and skips what is done")
    _config(one)
    one.add_argument("--dry-run", action="store_true", help="print the plan and its cost (minutes, GB) only")
    one = command("harvest", _harvest, "read the model's residual stream over the texts into RUN/activations")
    _config(one)
    for name, text in (
        ("train", "train (or load) the dictionaries on the harvested rows"),
        ("label", "match the dictionaries' features with the concepts, held out and against a null"),
        ("ablate", "remove labelled features and see what changes, against matched controls"),
    ):
        one = command(name, _stage(name), text)
        one.add_argument("run", type=Path, metavar="RUN", help="run folder")
        one.add_argument("--dictionary", metavar="NAME", help="this dictionary alone (default: all of the run's)")
        one.add_argument("--again", action="store_true", help="do it again although it is done")
    one = command("report", _stage("report"), "write RUN/report.html and RUN/summary.json")
    one.add_argument("run", type=Path, metavar="RUN", help="run folder")
    one.add_argument("--again", action="store_true", help="do it again although it is done")
    one = command("vectors", _vectors, "one dense vector a concept at some blocks: geometry, read-outs and batteries")
    one.add_argument("run", type=Path, metavar="RUN", help="run folder")
    one.add_argument(
        "--blocks", type=int, nargs="+", default=(), metavar="N", help="0-based (default: those that were harvested)"
    )
    one.add_argument(
        "--norms",
        nargs="+",
        default=(),
        metavar="CSV",
        help="ratings of words: FILE, FILE=WORD,VALENCE,AROUSAL (columns by name or number), or vader",
    )
    one.add_argument("--clusters", type=Path, metavar="JSON", help="{name: [concept, ...]} (default: the families)")
    one.add_argument("--dictionary", metavar="NAME", help="compare its features (default: the first labelled one)")
    one.add_argument("--again", action="store_true", help="do it again although it is done")
    one = command("find", _find, "features of a concept, best held-out AUROC first")
    one.add_argument("word", metavar="WORD", help="a concept or a family of concepts")
    _reading(one)
    one = command("show", _show, "one feature: label, scores, logit lens, top contexts, verdict")
    one.add_argument("feature", type=int, metavar="FEATURE", help="number of the feature, from 0")
    _reading(one)
    one = command("read", _read, "the tokens of your own text with their labelled features and activations")
    one.add_argument("text", metavar="TEXT", help="a text of at least two tokens; - reads standard input")
    _reading(one)
    one = command("steer", _steer, "add features to the residual stream and see what the model says, among controls")
    _steering(one)
    one = command("serve", _serve, "the feature look-up API, on this machine's loopback address alone")
    one.add_argument("run", type=Path, metavar="RUN", help="run folder")
    one.add_argument("--port", type=int, default=8765, metavar="P", help="TCP port, 1 to 65535 (default: %(default)s)")
    one = command("verify", _verify, "all checksums of a run, and random rows recomputed through the model")
    one.add_argument("run", type=Path, metavar="RUN", help="run folder")
    one.add_argument(
        "--documents", type=int, default=16, metavar="N", help="documents a source to recompute (default: %(default)s)"
    )
    _json(one)
    one = command("sources", _sources, "models and texts that are known by name, and the forms a source may take")
    _json(one)
    one = command(
        "doctor",
        _doctor,
        "what this machine has (cores, vector units, CUDA, memory in GB, disk in GB) and what follows",
    )
    _json(one)
    return top


def _json(one: argparse.ArgumentParser) -> None:
    one.add_argument("--json", action="store_true", help="print JSON for programs")


def _config(one: argparse.ArgumentParser) -> None:
    one.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, such as train/smollm2-135m.yaml")
    one.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder to make or to go on with")


def _reading(one: argparse.ArgumentParser) -> None:
    one.add_argument("--run", type=Path, required=True, metavar="RUN", help="run folder")
    one.add_argument("--dictionary", metavar="NAME", help="which dictionary (default: the run's first)")
    _json(one)


def _steering(one: argparse.ArgumentParser) -> None:
    one.add_argument("prompt", nargs="+", metavar="PROMPT", help="a user's turn; - reads standard input")
    one.add_argument(
        "--feature", type=int, nargs="+", required=True, metavar="N", help="one, or several added together"
    )
    one.add_argument("--dose", type=float, nargs="+", metavar="X", help="one or several; below 0 steers away")
    one.add_argument(
        "--unit",
        choices=["norm", "p99"],
        default="norm",
        help="of the mean residual norm, or of each feature's own 99th percentile of activation (default: %(default)s)",
    )
    one.add_argument("--concept", metavar="WORD", help="whose word is asked after (default: the features' label)")
    one.add_argument(
        "--positions", choices=["all", "prompt"], default="all", help="what is steered (default: %(default)s)"
    )
    one.add_argument("--readout", metavar="TEXT", help="what the words follow (default: the concept set's own)")
    one.add_argument("--raw", action="store_true", help="take the prompt as it is, not as a user's turn")
    one.add_argument(
        "--tokens", type=int, default=30, metavar="N", help="length of the continuations (default: %(default)s)"
    )
    one.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default: %(default)s)"
    )
    one.add_argument(
        "--controls",
        type=int,
        default=20,
        metavar="N",
        help="controls of each kind, at least 20 (default: %(default)s)",
    )
    one.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of controls and drawn tokens (default: %(default)s)"
    )
    one.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw curve and words")
    _reading(one)


def _print(data: Any) -> None:
    print(json.dumps(data, indent=1, ensure_ascii=False))


def _run(options: argparse.Namespace) -> None:
    from sae_emotions.config import load_config
    from sae_emotions.pipeline import run
    from sae_emotions.progress import say
    from sae_emotions.run_folder import check, stage_keys

    config = load_config(options.config)
    check(options.out, config)
    from sae_emotions.cost import stages_done

    if set(stage_keys(config)) <= stages_done(options.out):
        say(f"All stages of {options.out} are done; nothing was changed.")
    else:
        say(_cost(config, options.out))
        if options.dry_run:
            return
        run(config, options.out)
    if options.dry_run:
        return
    from sae_emotions.report.table import final_table

    print(final_table(options.out))
    print(f"\nThe result lies in {options.out}: report.html for people, summary.json for programs.")


def _cost(config: Any, out: Path) -> str:
    from sae_emotions.concepts.concept_set import load_concepts
    from sae_emotions.cost import Speed, estimate, rendered, stages_done
    from sae_emotions.machine import compute_dtype, measure, summary
    from sae_emotions.sources.models import check_blocks, model_info

    info = model_info(config.model)
    check_blocks(config.harvest.blocks, info["blocks"])
    measured = measure()
    float32 = compute_dtype(config.model, measured).itemsize == 4
    speed = Speed(measured["fp32_gflops"], measured["fp32_gflops" if float32 else "bf16_gflops"])
    cost = estimate(config, info, load_concepts(config.concepts), speed, float32, stages_done(out))
    return rendered(cost, summary(measured), out)


def _harvest(options: argparse.Namespace) -> None:
    from sae_emotions.config import load_config
    from sae_emotions.pipeline import run_stages
    from sae_emotions.progress import say
    from sae_emotions.run_folder import create_or_check

    config = load_config(options.config)
    create_or_check(options.out, config)
    if not run_stages(options.out, ["harvest"]):
        say(f"The harvest in {options.out} is done; nothing was changed.")


def _stage(stage: str) -> Callable[[argparse.Namespace], None]:
    def work(options: argparse.Namespace) -> None:
        from sae_emotions.pipeline import run_stages
        from sae_emotions.progress import say
        from sae_emotions.run_folder import config_of

        keys = ["report"]
        if stage != "report":
            names = (
                [options.dictionary] if options.dictionary else [d.name for d in config_of(options.run).dictionaries]
            )
            keys = [f"{stage}:{name}" for name in names]
        ran = run_stages(options.run, keys, options.again)
        for key in keys:
            if key not in ran:
                say(f"{key} is done in {options.run}; nothing was changed (--again does it once more).")

    return work


def _vectors(options: argparse.Namespace) -> None:
    from sae_emotions.report.vectors import vectors_table
    from sae_emotions.vectors.vectors import vectors

    vectors(options.run, options.blocks, options.norms, options.clusters, options.dictionary, options.again)
    print(vectors_table(options.run))


def _opened(options: argparse.Namespace) -> Any:
    from sae_emotions.lookup.run import open as open_run

    return open_run(options.run)


def _find(options: argparse.Namespace) -> None:
    from sae_emotions.lookup.text import find_table

    found = _opened(options).find(options.word, dictionary=options.dictionary)
    if options.json:
        _print([one.to_dict() | {"finding": one.finding} for one in found])
    else:
        print(find_table(options.word, found))


def _show(options: argparse.Namespace) -> None:
    from sae_emotions.lookup.text import feature_card

    feature = _opened(options).feature(options.feature, dictionary=options.dictionary)
    if options.json:
        _print(feature.to_dict() | {"examples": [one.to_dict() for one in feature.examples()]})
    else:
        print(feature_card(feature, colour=sys.stdout.isatty()))


def _read(options: argparse.Namespace) -> None:
    from sae_emotions.lookup.text import read_table

    text = sys.stdin.read() if options.text == "-" else options.text
    reading = _opened(options).read(text, dictionary=options.dictionary)
    _print(reading.to_dict()) if options.json else print(read_table(reading, colour=sys.stdout.isatty()))


def _steer(options: argparse.Namespace) -> None:
    from sae_emotions.steering.picture import check_picture, steer_picture
    from sae_emotions.steering.steer import steer
    from sae_emotions.steering.text import steer_text

    if options.picture is not None:
        check_picture(options.picture)
    names = ("dictionary", "concept", "positions", "readout", "raw", "tokens", "controls", "temperature", "seed")
    found = steer(
        options.run,
        [sys.stdin.read() if one == "-" else one for one in options.prompt],
        options.feature,
        options.dose,
        options.unit,
        **{name: getattr(options, name) for name in names},
    )
    if options.picture is not None:
        steer_picture(found, options.picture)
    _print(found.to_dict()) if options.json else print(steer_text(found))


def _serve(options: argparse.Namespace) -> None:
    if not 1 <= options.port <= 65535:
        raise UserError(f"There is no port {options.port}; give one from 1 to 65535.")
    from sae_emotions.serve.app import serve

    serve(options.run, options.port)


def _verify(options: argparse.Namespace) -> None:
    from sae_emotions.verify import verify

    if options.documents < 1:
        raise UserError("--documents must be at least 1.")
    found = verify(options.run, options.documents)
    if options.json:
        _print(found._asdict())
    else:
        print(
            f"{found.files} files have their sha256; {found.rows:,} rows recomputed from text (seed {found.seed}), "
            f"the worst off by {found.worst:.2%}."
        )


def _sources(options: argparse.Namespace) -> None:
    from sae_emotions.sources.known import known_sources

    known = known_sources()
    if options.json:
        _print(known)
        return
    for one in known:
        print(one["name"])
        for key, value in one.items():
            if key != "name" and value:
                print(f"    {key}: {value}")


def _doctor(options: argparse.Namespace) -> None:
    from sae_emotions.harvest.readers import spoken as forward
    from sae_emotions.machine import device, doctor
    from sae_emotions.sparse.step import spoken

    facts = doctor() | {"forward_pass": forward(device()), "training_step": spoken(device())}
    if options.json:
        _print(facts)
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:<{width}}  {value}")
