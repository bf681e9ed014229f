"""The report stage: RUN/report.html for people and RUN/summary.json for programs. Reads the run folder alone."""

from pathlib import Path

from sae_emotions.artefact import write_json, written
from sae_emotions.config import RunConfig
from sae_emotions.lookup.run import Run
from sae_emotions.report import html, sections, story, validity
from sae_emotions.report.findings import gather
from sae_emotions.report.summary import summary
from sae_emotions.run_folder import validity_sha256


def report(config: RunConfig, run: Path) -> Path:
    """Write the page and the summary; returns the page's path. The same run gives the same bytes.

    Stages that were not run are said not to have been. Raises `UserError` where `run` is no run folder or is damaged.
    """
    found, opened = gather(config, run), Run(run)
    body = [sections.head(found), "<main>", html.paragraphs(story.overview(found))]
    body += [sections.dictionary(one, opened) for one in found.dictionaries]
    body += [validity.sections(found.validity), sections.provenance(found), "</main>"]
    page = html.page(f"{config.name}: labelled features", " ".join(story.in_short(found)), "\n".join(body))
    with written(run / "report.html") as beside:
        beside.write_text(page, encoding="utf-8")
    write_json(run / "summary.json", summary(found) | {"validity_sha256": validity_sha256(run)})
    return run / "report.html"
