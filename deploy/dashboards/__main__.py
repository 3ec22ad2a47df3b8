"""Writes the dashboards' JSON into deploy/grafana/dashboards."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards import engine, overview, slo, sparsity

FOLDER = Path(__file__).parents[1] / "grafana" / "dashboards"


def render() -> dict[str, str]:
    """Give the JSON of every dashboard, by file name."""
    boards = {"overview": overview, "sparsity": sparsity, "engine": engine, "slo": slo}
    encode = JSONEncoder(sort_keys=True, indent=1).encode
    return {f"{name}.json": encode(module.build().build()) + "\n" for name, module in boards.items()}


def main() -> None:
    """Write all files; one that is no longer built is removed."""
    rendered = render()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.json"):
        if path.name not in rendered:
            path.unlink()
    for name, text in rendered.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
