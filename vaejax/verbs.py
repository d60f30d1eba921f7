"""What each verb of the program does with its arguments: opens, calls, prints. What is slow to import comes when it is due."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaejax import config as configuration
from vaejax import config_file
from vaejax.errors import DataError, TrainingError, VaejaxError
from vaejax.interruption import on_sigterm


def train(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Train a model, evaluate it and draw its report; the same command goes on where a run stopped."""
    config = config_file.load(arguments.config, overrides)  # before anything slow is imported

    from vaejax import experiment, hosts, runs

    _join(arguments)
    with hosts.explain_loss():
        run = runs.create(arguments.workdir, config)
        with on_sigterm() as interruption:
            experiment.train(run, interruption)

        from vaejax import evaluation, report  # two seconds that the first step need not wait for

        if run.model.segment:
            return _say(f"trained. What it is worth: vaejax segment {run.directory} --best")
        _show(evaluation.evaluate(run))
        _say(f"report: {report.write(run)}")


def prepare(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prepare the images that a training would prepare, and no more; the same command goes on where it stopped."""
    config = config_file.load(arguments.config, overrides)

    from vaejax import datasets, runs, storage

    cache = runs.cache_of(storage.path(arguments.workdir), config)
    data = datasets.load(config.data, cache, datasets.DRIVERS[arguments.runner])
    counts = ", ".join(f"{split.n} {name}" for name, split in data.splits.items())
    left_out = f"; {len(data.skipped)} files left out" if data.skipped else ""
    print(f"prepared in {cache}: {counts} images of {data.image_shape}{left_out}; fingerprint {data.fingerprint[:16]}")


def inspect(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Count and show what lies in a folder or file of images, and suggest a configuration for it; before any training."""
    from etils import epath
    from rich.console import Console
    from rich.table import Table

    from vaejax import inspection, inspection_report, storage, suggestion
    from vaejax.progress import console

    for what, place in (("DATA", arguments.data or ""), ("--output", arguments.output)):
        storage.require_disk(what, place, "an inspection reads files in place, and lists their names for their owner alone")
    config, why = _source_of(arguments.data, overrides)
    found, directory = inspection.inspect(config.data, why, arguments.seed), epath.Path(arguments.output)
    table = Table(show_header=False, title=f"{found.facts['images']:,} images")
    for line in inspection_report.summary(found.facts):
        table.add_row(*line)
    Console(markup=False).print(table, _splits(found.facts["splits"]))
    for sentence in found.facts["suspicious"]:
        console.print(f"look at: {sentence}", markup=False)
    for note in found.private["problem"]:  # it names files, so that it is in no page
        console.print(note, markup=False)
    for file in found.private["unreadable"][:20]:
        console.print(f"unreadable: {file['path']}: {file['reason']}", markup=False)
    text = None
    try:
        choices = suggestion.suggest(found.facts, config.data, arguments.minutes)
        text = suggestion.text(choices, found.facts)
    except VaejaxError as error:
        console.print(str(error), markup=False)
    inspection_report.write(directory, found, text)
    print(f"written: {directory / 'inspection.html'}, inspection.json, private/files.json")
    if text:
        print(f"suggested: python train.py --config={directory / 'config.py'} --workdir=runs/first")


def _source_of(data: str | None, overrides: Sequence[str]) -> tuple[configuration.Config, str]:
    """The configuration whose images are inspected, and how its source was decided on."""
    if data and data.startswith("--config."):  # what argparse takes for DATA, for a space in its value
        return config_file.load(None, [data, *overrides]), "as configured"
    path = Path(data) if data else None
    if path is None or config_file.holds_configuration(path):
        return config_file.load(path, overrides), "as configured"

    from vaejax.datasets.guess import guess

    guessed = guess(path)
    found = [f"--config.data.name={guessed.name}", f"--config.data.path={str(path)!r}"]
    return config_file.load(None, [*found, *overrides]), guessed.why


def _splits(splits: dict[str, Any]) -> Any:
    """A table of images, patients and labels a split."""
    from rich.table import Table

    table = Table("", *splits)
    table.add_row("images", *(f"{part['images']:,}" for part in splits.values()))
    if all(part["patients"] is not None for part in splits.values()):
        table.add_row("patients", *(f"{part['patients']:,}" for part in splits.values()))
    for label in splits["train"]["labels"] or ():
        table.add_row(label, *(f"{(part['labels'] or {}).get(label, 0):,}" for part in splits.values()))
    return table


def evaluate(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Compute evaluation.json."""
    from vaejax import evaluation, hosts, runs

    _join(arguments)
    with hosts.explain_loss():
        run = runs.load(arguments.directory)
        _show(evaluation.evaluate(run, arguments.split, arguments.best, arguments.samples, arguments.draw))


def anomaly(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Score images by how far they are from normal ones, and flag them at a promised rate of false alarms."""
    from vaejax import runs, screening

    if arguments.input:
        return _anomaly_of_files(arguments)
    result = screening.screen(runs.load(arguments.directory), arguments.split, arguments.best, arguments.alpha)
    print(f"{result['notice']}\n{result['score']} of {result['images']} images, split {result['split']}, step {result['step']}")
    for kind, count in result["flagged"].items():
        told = "; promised: {:g}, so [{}, {}]".format(result["alpha"], *count["expected"]) if "expected" in count else ""
        print(f"flagged, {kind}: {count['flagged']} of {count['n']} {result['by']}s{told}")
    reference = {f"{name} (a reference, no choice)": found for name, found in result["reference"].items()}
    for name, found in (result["ranking"] | reference | {"pixels": result["pixels"]}).items():
        for measure, value in found.items():
            print(f"{name}: {measure} {_interval(value)}")
    for name, reason in result["undefined"].items():
        print(f"{name}: not defined: {reason}")
    print("written: anomaly.json, anomaly.csv, anomaly_maps.npy")


def _anomaly_of_files(arguments: argparse.Namespace) -> None:
    from vaejax import derived

    run, output = _open(arguments)
    result = derived.anomaly(run, output, arguments.best, arguments.input, arguments.alpha, arguments.identify)
    for name, found in result["studies"].items():
        verdict = "no slice that a training would take" if found["flagged"] is None else f"p = {found['p_value']:.3g}"
        print(
            f"{name}: {verdict}{', flagged' if found['flagged'] else ''} ({found['counted']} of {found['images']} slices count)"
        )
    flagged = sum(bool(found["flagged"]) for found in result["studies"].values())
    print(f"flagged: {flagged} of {len(result['studies'])} studies; promised share among normal ones: {result['alpha']:g}")
    _written_studies(result["studies"], output, "anomaly.csv, anomaly.json")


def frechet(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Frechet distance between samples and test images, on the features of a classifier trained on the same images."""
    from vaejax import frechet, runs

    names = ("prior", "mixture") if arguments.sampler == "both" else (arguments.sampler,)
    result = frechet.measure(runs.load(arguments.directory), arguments.n, arguments.seeds, names, arguments.best)
    accuracy = f"the classifier has {100 * result['classifier']['accuracy']:.1f} % of the test images right"
    print(f"Frechet distances, squared feature units. As many training images: {result['floor']:.4g} ({accuracy})")
    for name in names:
        agreeing = result["agreement"].get(name)
        told = f"; {100 * agreeing['mean']:.2f} % have the label asked for" if agreeing else ""
        print(f"samples from the {name}: {_number(result['samplers'][name])}{told}")


def deidentify(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Copy DICOM, NIfTI, PNG, JPEG and TIFF files for sharing, without what tells whose they are."""
    from rich.console import Console
    from rich.table import Table

    from vaejax import storage
    from vaejax.privacy import boxes, copies, folder, pseudonyms

    masks = [boxes.parse(text) for text in arguments.box]
    for what, place in (("IN", arguments.source), ("OUT", arguments.target)):
        storage.require_disk(what, place, "copy what is shared once it is checked")
    target = Path(arguments.target)
    report = folder.deidentify(
        Path(arguments.source), target, pseudonyms.read_key(arguments.key_file), masks, arguments.on_error
    )
    table = Table("kind", "files", *copies.ACTIONS, title="fields of headers, by what was done to them")
    for kind, n, counts in folder.totals(report):
        table.add_row(kind, *map(str, (n, *(counts[action] for action in copies.ACTIONS))))
    Console().print(table)
    for remark, n in folder.remarks(report):
        print(f"{n} files: {remark}")
    print(f"report: {target / 'deidentification.md'}; names, not to be shared: {folder.names_file(target)}")


def report(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Draw report/index.html."""
    from vaejax import report, runs

    print(f"report: {report.write(runs.load(arguments.directory), arguments.best)}")


def sample(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Draw images from the prior, or near given ones."""
    from vaejax import derived, gallery

    run, output = _open(arguments)
    how = (arguments.seed, arguments.temperature, arguments.label)
    if arguments.near:
        if (arguments.sampler, arguments.format) != ("prior", "png"):
            raise DataError("--near: images near one are of its posterior, and as it is. Leave out --sampler and --format.")
        near = (arguments.near, arguments.n or 4, *how, arguments.identify)
        return _written_studies(derived.sample(run, output, arguments.best, *near), output, "samples.png, samples.npz")
    gallery.sample(run, output, arguments.best, arguments.n or 100, *how, arguments.sampler, arguments.format)
    more = {"png": "", "nifti": ", samples.nii.gz", "dicom": ", samples/"}[arguments.format]
    _written(f"{output / 'samples.png'}, samples.npz{more}")


def reconstruct(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Images beside their reconstructions."""
    from vaejax import derived, gallery

    run, output = _open(arguments)
    if arguments.input:
        found = derived.reconstruct(run, output, arguments.best, arguments.input, arguments.identify)
        return _written_studies(found, output)
    gallery.reconstruct(run, output, arguments.best, arguments.split, arguments.n, arguments.seed)
    _written(f"{output / 'reconstructions.png'}, reconstructions.npz")


def interpolate(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Lines between images."""
    from vaejax import derived, gallery

    run, output = _open(arguments)
    if arguments.input:
        derived.interpolate(run, output, arguments.best, arguments.input, arguments.steps)
        return _written(f"{output / 'interpolations.png'}, interpolations.npz; studies.json says which is which")
    gallery.interpolate(run, output, arguments.best, arguments.split, arguments.n, arguments.seed, arguments.steps)
    _written(f"{output / 'interpolations.png'}, interpolations.npz")


def embed(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """A table of latents, a map of them, and how much of the label they hold."""
    from vaejax import derived, gallery

    run, output = _open(arguments)
    if arguments.input:
        found = derived.embed(run, output, arguments.best, arguments.input)
        print(f"{found['images']} images of {found['studies']} studies, {found['numbers']} numbers each")
        return _written(f"{output / 'latents.csv'}, latents.parquet, embedding.json; studies.json says which is which")
    result = gallery.embed(run, output, arguments.best, arguments.split, arguments.map)
    for name, probe in result.get("probes", {}).items():
        known = [key for key in ("accuracy", "balanced_accuracy", "auc") if probe[key]]
        words = (f"{key.replace('_', ' ')} {_interval(probe[key])}" for key in known)
        print(f"{name} probe for the label, {probe['n']} test images: {', '.join(words)}")
    _written(f"{output / 'latents.csv'}, latents.parquet, map.png, embedding.json")


def explain(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Images of one label moved towards another in the latent space, and what changes."""
    from vaejax import derived, gallery

    run, output = _open(arguments)
    ends = (arguments.first, arguments.second)
    if arguments.input:
        how = (ends, arguments.n, arguments.steps, arguments.identify)
        means = derived.explain(run, output, arguments.best, arguments.input, *how)
    else:
        how = (ends, arguments.n, arguments.steps, arguments.seed)
        means = gallery.explain(run, output, arguments.best, arguments.split, *how)
    print(f"mean probability of {ends[1]}, by the linear probe, at each step: {', '.join(f'{mean:.2f}' for mean in means)}")
    _written(f"{output / 'explanation.png'}, explanation.npz")


def segment(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """The classes of pixels that a segmenter finds, and how like those drawn by hand they are."""
    from vaejax import derived, gallery

    run, output = _open(arguments)
    if arguments.input:
        masks = derived.segment(run, output, arguments.best, arguments.input, arguments.n, arguments.identify)
        return _written_studies(masks, output, "segmentations.png")
    result = gallery.segment(run, output, arguments.best, arguments.split, arguments.n, arguments.seed)
    found = {"mean of the classes": result["mean"]} | {f"class {name}": entry for name, entry in result["classes"].items()}
    for name, entry in found.items():
        known = {key: entry[key] for key in ("dice", "hausdorff95") if entry.get(key, {}).get("n")}
        words = (f"{key} {_interval(value)}" + f" {value['unit']}".removesuffix(" 1") for key, value in known.items())
        print(f"{name}, {result['volumes']} {result['volume']}s: {', '.join(words)}")
    _written(f"{output / 'segmentation.json'}, segmentations.npz, segmentations.png")


def inpaint(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """What the model expects where pixels are missing: draws, their mean, and how far they spread."""
    import numpy as np

    from vaejax import derived, gallery

    run, output = _open(arguments)
    if arguments.input:
        given = (arguments.input, arguments.mask, arguments.draws, arguments.seed, arguments.identify)
        numbers = derived.inpaint(run, output, arguments.best, *given)
        _chains(*(np.concatenate([one[name] for one in numbers.values()]) for name in ("acceptance", "scale_reduction")))
        return _written_studies(numbers, output)
    how = (arguments.split, arguments.n, arguments.seed, arguments.mask, arguments.draws)
    found = gallery.inpaint(run, output, arguments.best, *how)
    _chains(found.acceptance, found.scale_reduction)
    _written(f"{output / 'inpainted.png'}, inpainted.npz")


def _chains(acceptance: Any, scale_reduction: Any) -> None:
    """How the chains of images went; NaN where there were none."""
    import numpy as np

    print(
        f"chains: {100 * np.nanmean(acceptance):.0f} % of the transitions accepted; potential scale reduction "
        f"{np.nanmedian(scale_reduction):.2f} in the median image, {np.nanmax(scale_reduction):.2f} at most (1: they agree)"
    )


def _written(files: str) -> None:
    print(f"written: {files}\nResearch use only: not for diagnosis.")


def _written_studies(found: Any, output: Any, beside: str = "") -> None:
    _written(f"{len(found)} studies in {output}; studies.json there says which is which{beside and '; beside it ' + beside}")


def _open(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The run, and the folder where its pictures go."""
    from vaejax import runs, storage

    run = runs.load(arguments.directory)
    return run, storage.path(arguments.output) if arguments.output else run.directory / "gallery"


def _join(arguments: argparse.Namespace) -> None:
    """Meets the other processes, where there are some; only the first of them speaks."""
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if not arguments.distributed and given == (None, None, None):
        return
    if not arguments.distributed and None in given:
        raise TrainingError(
            "--coordinator, --processes and --process go together. Give all three, or --distributed where SLURM, Open MPI, "
            "Kubernetes or a Cloud TPU knows them."
        )
    from vaejax import hosts
    from vaejax.progress import console

    hosts.join(*given)
    console.quiet = not hosts.first()


def _say(text: str) -> None:
    from vaejax import hosts

    if hosts.first():
        print(text)


def _show(result: dict[str, Any]) -> None:
    """Prints an evaluation as a table, the linear floor beside it."""
    from rich.console import Console
    from rich.table import Table

    from vaejax import hosts

    table = Table("metric", "vaejax", "PCA", "unit", title=f"{result['split']} split at step {result['step']}")
    for name, value in result["metrics"].items():
        floor = result["baselines"].get("pca", {}).get(name)
        table.add_row(name, _number(value), _number(floor) if floor else "", value["unit"])
    Console(quiet=not hosts.first()).print(table)


def _number(value: dict[str, Any]) -> str:
    return f"{value['mean']:.4g}" + (f" ± {value['sem']:.2g}" if value["sem"] is not None else "")


def _interval(value: dict[str, float]) -> str:
    return f"{value.get('value', value.get('mean')):.3f} [{value['low']:.3f}, {value['high']:.3f}]"
