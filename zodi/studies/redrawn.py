"""The row "redrawn" of the tables: source-only networks, unchanged, on test images redrawn in the source's domain.

Nothing is trained, and no label is looked at before the score. See `zodi.tools.redrawing` for the method.

    RESULTS/runs/redrawn/NETWORK/seedSEED/
        images/DOMAIN/         what `redraw_target` writes
        predictions/DOMAIN/    what the network sees in the first redrawn images
        metrics.json           as that of a training, see `zodi.studies.tables.collect`
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zodi.datasets import label_set_of, open_split
from zodi.diffusion import DiffusionModel
from zodi.evaluation import by_domain, evaluate, write_predictions
from zodi.experiment import test_sets
from zodi.segmentation import load_network
from zodi.studies.table_rows import REDRAWN
from zodi.support.files import folder_name, read_json
from zodi.support.runs import METRICS_FILE, device_text, remove_metrics, save_metrics
from zodi.tools.redrawing import REDRAWN_FOLDER, redraw_target
from zodi.transfer import domain_config

# Of `zodi.tools.redrawing.LAYOUTS`. The network's own prediction takes a transfer of every test image per network: 1500
# in the profile "full", four minutes on 2 cores, where no layout would take 500. It was chosen on 20 training images
# each in night and in snow, none of which is scored: without a layout the network found less.
LAYOUT = "predicted"


def run_redrawn(
    results: str | Path,
    network: str,
    seed: int,
    domains: Sequence[str],
    model: DiffusionModel,
    device: str = "cpu",
    progress: bool = True,
    **changes: Any,
) -> Path:
    """Score a source-only run of a profile on the test images of its domains, redrawn in the source's domain.

    Every image goes back as far as the transfer to its domain does: with the strength of the domain, not the source's.

    Args:
        results: the profile's results folder, with `data/` and the run `runs/source_only/NETWORK/seedSEED`.
        network: name of the network, ARCHITECTURE/ENCODER.
        seed: of the source-only run.
        domains: test domains.
        model: the diffusion model.
        device: where the network predicts.
        progress: show bars.
        changes: settings of the transfer, see `zodi.transfer.TransferConfig`.

    Returns:
        The path of the run's metrics.json.

    Raises:
        FileNotFoundError: if the source-only run is not there.
        ValueError: if the data lack a domain, or an image could not be redrawn.
    """
    start = time.perf_counter()
    results, place = Path(results), Path(folder_name(network)) / f"seed{seed}"
    trained, out = results / "runs" / "source_only" / place, results / "runs" / REDRAWN.name / place
    if not (trained / METRICS_FILE).is_file():
        raise FileNotFoundError(f"{trained / METRICS_FILE}: not found; expected a run of source_only, train it first")
    source_only = read_json(trained / METRICS_FILE)["metrics"]
    unchanged, label_set = load_network(trained / "network").to(device), label_set_of(results / "data")
    tests = test_sets(results / "data", domains)
    remove_metrics(out)
    scores, strengths = {}, {}
    for domain in tests:
        strengths[domain] = domain_config(domain, defaults=model.defaults).strength
        settings = {"strength": strengths[domain]} | changes
        images, redrawn = results / "data" / "test" / domain / "images", out / "images" / domain
        report = redraw_target(unchanged, images, redrawn, model, label_set, LAYOUT, progress=progress, **settings)
        if not report.ok:
            raise ValueError(f"{redrawn}: {len(report.errors)} images failed. {next(iter(report.errors.values()))}")
        seen = open_split(results / "data", f"test/{domain}", images=redrawn / REDRAWN_FOLDER / "images")
        scores[domain] = evaluate(unchanged, seen, label_set, progress=progress)
        write_predictions(unchanged, seen, out / "predictions" / domain)
    record = {
        "variant": REDRAWN.name,
        "domain": "",
        "network": network,
        "seed": seed,
        "images_seen": source_only["images_seen"],
    }
    used = {"layout": LAYOUT, "strengths": strengths, "model": model.name} | changes
    metrics = record | by_domain(scores)
    return save_metrics(out, REDRAWN.name, used, metrics, time.perf_counter() - start, device_text(device, model.dtype))
